//! Outlines of binary masks: closed lines along the edges of pixels.

use super::bitmask::BitMask;

/// A corner of pixels: pixel (row y, column x) is the square from (x, y) to (x + 1, y + 1).
pub type Corner = [u32; 2];

/// The outline of a mask: rings around its parts and around the holes in them.
///
/// A part is what hangs together by edges of pixels; pixels that touch at a corner alone are two parts. A
/// ring goes along the edges of pixels with the mask on its right, as an image is looked at: clockwise around
/// a part, counterclockwise around a hole. It is closed without its first corner being repeated, and has
/// corners only where it turns. No two rings share an edge, though they may share corners; by the even-odd
/// rule as by the winding rule they hold exactly the mask's pixels. Rings come in the order in which their
/// first upper edge is met, row by row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline {
    corners: Vec<Corner>,
    rings: Vec<Span>,
    /// Upper edges of pixels that a ring has gone along, and vertical edges by row, column and ring.
    seen: BitMask,
    sides: Vec<(u32, u32, u32)>,
    /// Rings around holes by a corner of theirs.
    holes: Vec<(Corner, usize)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    first: usize,
    end: usize,
    outer: usize,
}

/// One of the rings of an [`Outline`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring<'a> {
    /// Its corners.
    pub corners: &'a [Corner],
    /// The number of the ring around the part that it is of: its own, unless it goes around a hole.
    pub outer: usize,
}

/// East, south, west, north: each is the one before, turned to the right.
const STEPS: [[i64; 2]; 4] = [[1, 0], [0, 1], [-1, 0], [0, -1]];

impl Outline {
    /// The outline of a mask.
    pub fn of(mask: &BitMask) -> Outline {
        let mut outline = Outline::default();
        outline.trace(mask);
        outline
    }

    /// Makes it the outline of another mask, keeping the memory.
    pub fn trace(&mut self, mask: &BitMask) {
        self.corners.clear();
        self.rings.clear();
        self.sides.clear();
        self.seen.reset(mask.height(), mask.width());
        let bounds = mask.bbox();
        for y in bounds.y..bounds.y + bounds.height {
            for at in (bounds.x..bounds.x + bounds.width).step_by(BitMask::WORD) {
                let above = if y > 0 { mask.word(y - 1, at) } else { 0 };
                let upper = mask.word(y, at) & !above;
                // Each ring marks edges of this word, too.
                loop {
                    let left = upper & !self.seen.word(y, at);
                    if left == 0 {
                        break;
                    }
                    self.follow(mask, y, at + left.leading_zeros() as usize);
                }
            }
        }
        self.nest();
    }

    /// The rings.
    pub fn rings(&self) -> impl ExactSizeIterator<Item = Ring<'_>> {
        self.rings
            .iter()
            .map(|&Span { first, end, outer }| Ring { corners: &self.corners[first..end], outer })
    }

    /// The corners of all rings, one ring after the other.
    pub fn corners(&self) -> &[Corner] {
        &self.corners
    }

    /// Adds the ring along the upper edge of pixel (y, x), from the left: a corner, or the ring would have
    /// been met further left.
    fn follow(&mut self, mask: &BitMask, y: usize, x: usize) {
        let inside = |x: i64, y: i64| {
            let (height, width) = (mask.height() as i64, mask.width() as i64);
            (0..width).contains(&x) && (0..height).contains(&y) && mask.get(y as usize, x as usize)
        };
        let (first, ring) = (self.corners.len(), self.rings.len() as u32);
        let start = [x as i64, y as i64];
        let ([mut x, mut y], mut heading) = (start, 0);
        loop {
            self.corners.push([x as u32, y as u32]);
            // Along edges that go straight on.
            let turned = loop {
                let [dx, dy] = STEPS[heading];
                match heading {
                    0 => self.seen.set(y as usize, x as usize),
                    1 => self.sides.push((y as u32, x as u32, ring)),
                    3 => self.sides.push((y as u32 - 1, x as u32, ring)),
                    _ => {}
                }
                (x, y) = (x + dx, y + dy);
                // The pixel ahead on the right, and the one beside it on the left, by their own corners.
                let ahead = match heading {
                    0 => [[x, y], [x, y - 1]],
                    1 => [[x - 1, y], [x, y]],
                    2 => [[x - 1, y - 1], [x - 1, y]],
                    _ => [[x, y - 1], [x - 1, y - 1]],
                };
                let [right, left] = ahead.map(|[x, y]| inside(x, y));
                match (right, left) {
                    // Also where the pixel on the left is of the mask: it touches at a corner alone.
                    (false, _) => break (heading + 1) % 4,
                    (true, true) => break (heading + 3) % 4,
                    (true, false) => {}
                }
            };
            heading = turned;
            if [x, y] == start && heading == 0 {
                break;
            }
        }
        self.rings.push(Span { first, end: self.corners.len(), outer: ring as usize });
    }

    /// Says of each hole which part it is in: between a side of the hole and the next side to the left in its
    /// row lie pixels of that part alone.
    fn nest(&mut self) {
        let Outline { corners, rings, sides, holes, .. } = self;
        holes.clear();
        for (ring, span) in rings.iter().enumerate() {
            let own = &corners[span.first..span.end];
            if signed_area(own) < 0 {
                // Of its leftmost side, which goes down from this corner or up to it, the upper end.
                holes.extend(own.iter().min().map(|&[x, y]| ([x, y], ring)));
            }
        }
        if holes.is_empty() {
            return;
        }
        sides.sort_unstable();
        // What lies further left is known before it is asked for.
        holes.sort_unstable();
        for &([x, y], hole) in &*holes {
            let after = sides.partition_point(|&(row, column, _)| (row, column) < (y, x));
            rings[hole].outer = rings[sides[after - 1].2 as usize].outer;
        }
    }
}

/// Twice the area that a ring goes around, positive if clockwise as an image is looked at.
fn signed_area(corners: &[Corner]) -> i64 {
    let pairs = corners.iter().zip(corners.iter().cycle().skip(1));
    pairs.map(|(&[ax, ay], &[bx, by])| i64::from(ax) * i64::from(by) - i64::from(bx) * i64::from(ay)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The pixels whose middles lie within the rings by the even-odd rule: a side to the left of a pixel
    /// flips it.
    fn fill<'a>(rings: impl Iterator<Item = Ring<'a>>, height: usize, width: usize) -> BitMask {
        let mut flips = vec![false; height * (width + 1)];
        for Ring { corners, .. } in rings {
            for (&[ax, ay], &[bx, by]) in corners.iter().zip(corners.iter().cycle().skip(1)) {
                assert!((ax == bx) != (ay == by), "a side from {ax},{ay} to {bx},{by}");
                if ax == bx {
                    (ay.min(by)..ay.max(by))
                        .for_each(|y| flips[y as usize * (width + 1) + ax as usize] ^= true);
                }
            }
        }
        let inside =
            |y: usize, x: usize| flips[y * (width + 1)..][..x + 1].iter().filter(|&&flip| flip).count() % 2;
        BitMask::from_fn(height, width, |y, x| inside(y, x) == 1)
    }

    fn check(mask: &BitMask) {
        let outline = Outline::of(mask);
        let (height, width) = (mask.height(), mask.width());
        assert_eq!(fill(outline.rings(), height, width), *mask);
        let areas: i64 = outline.rings().map(|ring| signed_area(ring.corners)).sum();
        assert_eq!(areas, 2 * mask.area() as i64);
        let rings: Vec<Ring<'_>> = outline.rings().collect();
        for (number, ring) in rings.iter().enumerate() {
            let is_hole = ring.outer != number;
            assert_eq!(is_hole, signed_area(ring.corners) < 0);
            assert_eq!(rings[ring.outer].outer, ring.outer, "a hole in a hole");
            // Three corners in a row are no line.
            let next = ring.corners.iter().cycle().skip(1).zip(ring.corners.iter().cycle().skip(2));
            for (a, (b, c)) in ring.corners.iter().zip(next) {
                assert!((a[0] == b[0]) != (b[0] == c[0]), "{a:?} {b:?} {c:?}");
            }
        }
        // Each part by itself, with its holes, hangs together and is whole.
        for number in (0..rings.len()).filter(|&number| rings[number].outer == number) {
            let part = fill(rings.iter().copied().filter(|ring| ring.outer == number), height, width);
            let area: i64 = rings.iter().filter(|r| r.outer == number).map(|r| signed_area(r.corners)).sum();
            assert_eq!(part.area() as i64 * 2, area);
            let first = part.pixels().next().expect("a part has pixels");
            assert_eq!(flooded(mask, first), part, "ring {number}");
        }
    }

    /// What hangs together with a pixel by edges.
    fn flooded(mask: &BitMask, from: (usize, usize)) -> BitMask {
        let mut part = BitMask::new(mask.height(), mask.width());
        let mut open = vec![from];
        while let Some((y, x)) = open.pop() {
            if y < mask.height() && x < mask.width() && mask.get(y, x) && !part.get(y, x) {
                part.set(y, x);
                open.extend([(y.wrapping_sub(1), x), (y + 1, x), (y, x.wrapping_sub(1)), (y, x + 1)]);
            }
        }
        part
    }

    fn drawn(rows: &[&str]) -> BitMask {
        BitMask::from_fn(rows.len(), rows[0].len(), |y, x| rows[y].as_bytes()[x] == b'#')
    }

    fn rings(outline: &Outline) -> Vec<(&[Corner], usize)> {
        outline.rings().map(|ring| (ring.corners, ring.outer)).collect()
    }

    #[test]
    fn a_part_with_a_hole_and_what_is_in_it() {
        let outline = Outline::of(&drawn(&["#####", "#...#", "#.#.#", "#...#", "#####"]));
        let (around, hole) = ([[0, 0], [5, 0], [5, 5], [0, 5]], [[1, 4], [4, 4], [4, 1], [1, 1]]);
        let inner = [[2, 2], [3, 2], [3, 3], [2, 3]];
        assert_eq!(rings(&outline), [(&around[..], 0), (&inner[..], 1), (&hole[..], 0)]);
    }

    #[test]
    fn pixels_that_touch_at_a_corner_are_two_parts() {
        let outline = Outline::of(&drawn(&["#.", ".#"]));
        assert_eq!(outline.rings().len(), 2);
        assert_eq!(outline.corners().len(), 8);
        assert_eq!(
            Outline::of(&BitMask::new(3, 4)),
            Outline { seen: BitMask::new(3, 4), ..Outline::default() }
        );
        assert_eq!(Outline::of(&BitMask::new(0, 0)).rings().len(), 0);
    }

    #[test]
    fn memory_is_kept_and_leaves_no_trace() {
        let (first, second) = (drawn(&["##.#", "#.##", "####"]), drawn(&["#.#", "###", "..#", "###"]));
        let mut outline = Outline::of(&first);
        outline.trace(&second);
        assert_eq!(rings(&outline), rings(&Outline::of(&second)));
    }

    proptest! {
        #[test]
        fn outlines_hold_exactly_the_mask(
            height in 1usize..40, width in 1usize..130, share in 1u32..10, seed in any::<u64>()
        ) {
            let mut state = seed | 1;
            let mask = BitMask::from_fn(height, width, |_, _| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                ((state >> 32) as u32) % 10 < share
            });
            check(&mask);
        }
    }

    #[test]
    fn smooth_masks_with_many_holes_are_whole() {
        for period in 3..9usize {
            check(&BitMask::from_fn(90, 200, |y, x| (y * y + x * x) / (10 * period) % period != 0));
        }
        check(&BitMask::from_fn(70, 113, |_, _| true));
    }
}
