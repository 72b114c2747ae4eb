//! Which instances of a result stay, and what of their masks: asked for by users, not part of K-Net.

use super::super::bitmask::PixelBox;
use super::super::parts::Parts;
use super::{Instance, InstanceResult, MaskSlot};
use crate::error::{Error, Result};

/// Which instances stay, and what of their masks, after K-Net's own post-processing. Rules hold in the order
/// of the fields. The default changes nothing: all that the official code gives, masks without a pixel among
/// them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InstanceFilter {
    /// Of each mask only its largest connected part stays (pixels that touch by a side or a corner are
    /// connected; of equals the part that begins highest).
    pub largest_part: bool,
    /// An instance of fewer pixels is dropped; 1 drops those without a pixel.
    pub min_area: usize,
    /// An instance is dropped, whatever its class, if its mask and that of a better one that stays have a
    /// larger IoU. 1, the default, drops none; below it, an object that was found under several classes keeps
    /// the best.
    pub max_overlap: f64,
    /// A box holds only connected parts with at least this share of the pixels of the mask's largest part, so
    /// that specks far away do not spoil it; they stay in the mask. 0, the default: a box holds every pixel.
    pub box_parts: f32,
}

impl Default for InstanceFilter {
    fn default() -> Self {
        InstanceFilter { largest_part: false, min_area: 0, max_overlap: 1.0, box_parts: 0.0 }
    }
}

/// What [`InstanceResult::filter`] keeps from call to call.
#[derive(Debug, Default)]
pub(crate) struct FilterMemory {
    parts: Parts,
    boxes: Vec<PixelBox>,
    /// New places of masks.
    places: Vec<usize>,
}

impl InstanceFilter {
    /// # Errors
    /// [`Error::Usage`] for a share or an IoU that is not from 0 to 1.
    pub(crate) fn check(&self) -> Result<()> {
        let shares = [("max_overlap", self.max_overlap), ("box_parts", f64::from(self.box_parts))];
        match shares.into_iter().find(|(_, share)| !(0.0..=1.0).contains(share)) {
            Some((name, share)) => Err(Error::usage(format!("{name} = {share}: takes a number from 0 to 1"))),
            None => Ok(()),
        }
    }
}

impl InstanceResult {
    /// Applies a filter. Without parts to look for, nothing is allocated for a result no larger than earlier
    /// ones.
    pub(crate) fn filter(&mut self, filter: &InstanceFilter, memory: &mut FilterMemory) {
        let FilterMemory { parts, boxes, places } = memory;
        boxes.clear();
        for slot in &mut self.masks[..self.used] {
            let rows = slot.bbox.y..slot.bbox.y + slot.bbox.height;
            if filter.largest_part {
                parts.find(&slot.mask, rows);
                (slot.area, slot.bbox) = parts.keep_largest(&mut slot.mask);
            } else if filter.box_parts > 0.0 {
                parts.find(&slot.mask, rows);
                boxes.push(parts.bbox_of(filter.box_parts));
                continue;
            }
            boxes.push(slot.bbox);
        }
        let mut kept = 0;
        for i in 0..self.instances.len() {
            let instance = self.instances[i];
            let slot = &self.masks[instance.slot];
            let (area, bbox) = (slot.area, boxes[instance.slot]);
            let overlaps = |better: &Instance| {
                better.slot == instance.slot || iou(&self.masks[better.slot], slot) > filter.max_overlap
            };
            let duplicate = filter.max_overlap < 1.0 && self.instances[..kept].iter().any(overlaps);
            if area >= filter.min_area && !duplicate {
                self.instances[kept] = Instance { area, bbox, ..instance };
                kept += 1;
            }
        }
        self.instances.truncate(kept);
        self.close_up(places);
    }

    /// Takes out masks that no instance has. Instances of one mask stay or go together, so the order of first
    /// use stays.
    fn close_up(&mut self, places: &mut Vec<usize>) {
        places.clear();
        places.resize(self.used, usize::MAX);
        let mut used = 0;
        for instance in &mut self.instances {
            let place = &mut places[instance.slot];
            if *place == usize::MAX {
                // Those between are unused: first uses are in the order of places.
                self.masks.swap(instance.slot, used);
                *place = used;
                used += 1;
            }
            instance.slot = *place;
        }
        self.used = used;
    }
}

/// Intersection over union of two masks; 0 of two empty ones.
fn iou(a: &MaskSlot, b: &MaskSlot) -> f64 {
    let end = |slot: &MaskSlot| (slot.bbox.x + slot.bbox.width, slot.bbox.y + slot.bbox.height);
    let ((right_a, bottom_a), (right_b, bottom_b)) = (end(a), end(b));
    let (top, bottom) = (a.bbox.y.max(b.bbox.y), bottom_a.min(bottom_b));
    if top >= bottom || a.bbox.x.max(b.bbox.x) >= right_a.min(right_b) {
        return 0.0;
    }
    let common = a.mask.common(&b.mask, top..bottom);
    common as f64 / (a.area + b.area - common) as f64
}

#[cfg(test)]
mod tests {
    use super::super::Ranked;
    use super::*;
    use crate::image::bitmask::BitMask;
    use std::ops::Range;

    const SIZE: (usize, usize) = (30, 40);

    /// Instances (score, object, class of two) with these masks, an object's index among them being its
    /// place.
    fn result(pairs: &[(f32, u32, u32)], masks: &[BitMask], into: &mut InstanceResult) {
        let scores: Vec<f32> = pairs.iter().map(|pair| pair.0).collect();
        let classified: Vec<i32> = pairs.iter().map(|pair| (2 * pair.1 + pair.2) as i32).collect();
        let places: Vec<u32> = pairs.iter().map(|pair| pair.1).collect();
        let copy = |place: usize, stale: Range<usize>, bytes: &mut [u8]| {
            let fresh = masks[place].bbox();
            for rows in [stale, fresh.y..fresh.y + fresh.height] {
                let range = rows.start * SIZE.1 / 8..rows.end * SIZE.1 / 8;
                bytes[range.clone()].copy_from_slice(&masks[place].bytes()[range]);
            }
            Ok(())
        };
        let extent = |place: usize| (masks[place].area(), masks[place].bbox());
        let ranked = Ranked {
            classes: 2,
            scores: &scores,
            pairs: &classified,
            places: &places,
            boxes: &[],
            copy_mask: &copy,
            extent: &extent,
        };
        into.assemble(&ranked, SIZE).unwrap();
    }

    fn rectangle(rows: Range<usize>, columns: Range<usize>) -> BitMask {
        BitMask::from_fn(SIZE.0, SIZE.1, |y, x| rows.contains(&y) && columns.contains(&x))
    }

    #[test]
    fn a_filter_does_what_it_says_and_leaves_a_sound_result() {
        // 100 pixels and a speck; none; 120 pixels of which 50 are the next one's; those 50 and 30 more, in
        // two classes; 6.
        let speck = |y, x| (y < 10 && x < 10) || (y, x) == (29, 39);
        let masks = [
            BitMask::from_fn(SIZE.0, SIZE.1, speck),
            rectangle(0..0, 0..0),
            rectangle(10..20, 10..22),
            rectangle(15..23, 12..22),
            rectangle(25..27, 0..3),
        ];
        let pairs =
            [(0.9, 0, 0), (0.8, 1, 0), (0.7, 2, 1), (0.6, 3, 0), (0.5, 3, 1), (0.4, 1, 1), (0.3, 4, 0)];
        let all = InstanceFilter::default();
        let some = InstanceFilter { min_area: 1, ..all };
        // IoU of the third and fourth mask: 50 of 120 + 80 - 50.
        let cases: [(InstanceFilter, &[usize]); 7] = [
            (all, &[0, 1, 2, 3, 4, 5, 6]),
            (some, &[0, 2, 3, 4, 6]),
            (InstanceFilter { min_area: 7, ..some }, &[0, 2, 3, 4]),
            (InstanceFilter { min_area: 101, ..some }, &[0, 2]),
            (InstanceFilter { min_area: 101, largest_part: true, ..some }, &[2]),
            (InstanceFilter { max_overlap: 50.0 / 150.0, ..some }, &[0, 2, 3, 6]),
            (InstanceFilter { max_overlap: 49.0 / 150.0, ..some }, &[0, 2, 6]),
        ];
        // One result and one memory for all: what a case leaves must not show in the next.
        let (mut found, mut memory) = Default::default();
        for (filter, expected) in cases {
            result(&pairs, &masks, &mut found);
            found.filter(&filter, &mut memory);
            let scores: Vec<f32> = found.instances().iter().map(|instance| instance.score).collect();
            assert_eq!(scores, expected.iter().map(|&i| pairs[i].0).collect::<Vec<_>>(), "{filter:?}");
            for instance in found.instances() {
                let mut mask = masks[instance.mask_index].clone();
                if filter.largest_part {
                    mask = rectangle(10..20, 10..22);
                }
                assert_eq!(found.mask(instance), &mask, "{filter:?}");
                assert_eq!((instance.area, instance.bbox), (mask.area(), mask.bbox()));
            }
            let distinct: std::collections::HashSet<usize> =
                found.instances().iter().map(|instance| instance.mask_index).collect();
            assert_eq!(found.masks().len(), distinct.len());
        }
    }

    #[test]
    fn a_speck_is_not_in_the_box_but_in_the_mask() {
        let speck = |y, x| (y < 10 && x < 10) || (y, x) == (29, 39);
        let masks = [BitMask::from_fn(SIZE.0, SIZE.1, speck)];
        let (mut found, mut memory) = Default::default();
        for (filter, area, (width, height)) in [
            (InstanceFilter::default(), 101, (40, 30)),
            (InstanceFilter { box_parts: 0.01, ..InstanceFilter::default() }, 101, (40, 30)),
            (InstanceFilter { box_parts: 0.02, ..InstanceFilter::default() }, 101, (10, 10)),
            (InstanceFilter { largest_part: true, ..InstanceFilter::default() }, 100, (10, 10)),
        ] {
            result(&[(0.9, 0, 0)], &masks, &mut found);
            found.filter(&filter, &mut memory);
            let [instance] = found.instances() else { panic!("{filter:?}") };
            assert_eq!(instance.bbox, PixelBox { x: 0, y: 0, width, height }, "{filter:?}");
            assert_eq!((instance.area, found.mask(instance).area()), (area, area), "{filter:?}");
        }
    }

    #[test]
    fn shares_beyond_the_whole_are_refused() {
        for filter in [
            InstanceFilter { max_overlap: f64::NAN, ..InstanceFilter::default() },
            InstanceFilter { max_overlap: 1.5, ..InstanceFilter::default() },
            InstanceFilter { box_parts: -0.1, ..InstanceFilter::default() },
        ] {
            assert!(matches!(filter.check(), Err(Error::Usage(_))), "{filter:?}");
        }
        InstanceFilter::default().check().unwrap();
    }
}
