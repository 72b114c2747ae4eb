use super::divisor::divisor;
use super::launches::{elements, expect_f32, per_element};
use super::{CudaOp, top_k};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Program};
use crate::ops::non_max_suppression::{Groups, NonMaxSuppression};
use crate::plan::Site;

const SOURCE: &str = "boxes/suppress.cu";

/// Candidates of a word of bits, and threads of a block that makes words: `WORD` of
/// `kernels/boxes/suppress.cu`.
const WORD: usize = 64;

/// Most candidates of a group: a lane of a warp has a word of them.
const MOST: usize = 32 * WORD;

/// Bytes of a key, of a word of bits, and of what is known of a ranked group.
const LONG: usize = 8;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    boxes: u32,
    candidates: u32,
    by_shared: [u32; 2],
    stride: u32,
    by_stride: [u32; 2],
    groups: u32,
    room: u32,
    words: u32,
    most: u32,
    listed: u32,
    keep: u32,
    iou_threshold: f32,
    score_threshold: f32,
    drop_empty: u32,
}

/// First candidate and number of candidates of each group, and how far the candidates of a group are apart.
fn groups(groups: &Groups, candidates: usize) -> (Vec<[u32; 2]>, usize) {
    match groups {
        Groups::Interleaved(classes) => {
            let count = (candidates / classes) as u32;
            ((0..*classes).map(|first| [first as u32, count]).collect(), *classes)
        }
        Groups::Consecutive(counts) => {
            let mut end = 0;
            let of = |&count: &usize| {
                let first = end;
                end += count as u32;
                [first, count as u32]
            };
            (counts.iter().map(of).collect(), 1)
        }
    }
}

/// Where things lie in the workspace, one after the other.
#[derive(Default)]
struct Workspace(usize);

impl Workspace {
    fn take(&mut self, longs: usize) -> Arg {
        let at = self.0;
        self.0 += (longs * LONG).next_multiple_of(256);
        Arg::Workspace(at)
    }
}

impl CudaOp for NonMaxSuppression {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let (boxes, scores) = (site.inputs[0], site.inputs[1]);
        elements(boxes)?;
        elements(scores)?;
        expect_f32(site, [0, 1])?;
        let [batch, boxes, candidates] = [boxes.shape[0], boxes.shape[1], scores.shape[1]];
        let (groups, stride) = groups(&self.groups, candidates);
        let room = groups.iter().map(|group| group[1] as usize).max().unwrap_or(0);
        if room > MOST {
            return Err(format!("a group of {room} candidates; the kernel takes up to {MOST}"));
        }
        let most = room.min(self.keep);
        let (merging, listed) = match groups.len() {
            1 => (Vec::new(), most),
            groups => top_k::merging(groups * most, self.keep)?,
        };
        let params = Params {
            boxes: boxes as u32,
            candidates: candidates as u32,
            by_shared: divisor((candidates / boxes.max(1)).max(1)),
            stride: stride as u32,
            by_stride: divisor(stride),
            groups: groups.len() as u32,
            room: room as u32,
            words: room.div_ceil(WORD) as u32,
            most: most as u32,
            listed: listed as u32,
            keep: self.keep as u32,
            iou_threshold: self.iou_threshold,
            score_threshold: self.score_threshold,
            drop_empty: u32::from(self.drop_empty),
        };
        let [of_groups, of_images] = [groups.len() as u32, batch as u32];
        let size = room.next_power_of_two().max(WORD);
        let launch = |entry, grid, threads: usize, operands: Vec<Arg>| Launch {
            source: SOURCE,
            entry,
            defines: vec![("SIZE", size as i64)],
            grid,
            block: [threads as u32, 1, 1],
            shared: 0,
            args: operands.into_iter().chain([Arg::of(&params)]).collect(),
        };
        let table = match groups[..] {
            [] => Arg::Null,
            _ => Arg::Table(groups.iter().map(Arg::of).collect()),
        };
        let (mut workspace, mut launches) = (Workspace::default(), Vec::new());
        let (all, mut list) = (batch * groups.len(), Arg::Null);
        if listed > 0 {
            let (sorted, ranked) = (workspace.take(all * room), workspace.take(all));
            let bits = workspace.take(all * room * params.words as usize);
            let counts = if self.counted { Arg::Input(2) } else { Arg::Null };
            let operands =
                [Arg::Input(0), Arg::Input(1), counts, table.clone(), sorted.clone(), ranked.clone()];
            launches.push(launch("rank", [of_groups, of_images, 1], size / 2, operands.into()));
            let operands = [Arg::Input(0), sorted.clone(), ranked.clone(), bits.clone()];
            let grid = [params.words, params.words, of_groups * of_images];
            launches.push(launch("overlaps", grid, WORD, operands.into()));
            list = workspace.take(all * most);
            let mut other = if merging.is_empty() { Arg::Null } else { workspace.take(all * most) };
            let operands = [sorted, ranked, bits, list.clone()];
            launches.push(launch("sweep", [of_groups, of_images, 1], 32, operands.into()));
            for pass in merging {
                launches.push(pass.of_keys(of_images, list.clone(), other.clone()));
                (list, other) = (other, list);
            }
        }
        let operands: Vec<Arg> =
            [Arg::Input(0), Arg::Input(1), table, list].into_iter().chain((0..4).map(Arg::Output)).collect();
        let of_image = per_element(self.keep.max(1));
        launches.push(launch(
            "gather",
            [of_image.grid[0], of_images, 1],
            of_image.block[0] as usize,
            operands,
        ));
        Ok(Program {
            kernel: format!("{} groups of {room}", groups.len()),
            launches,
            workspace: workspace.0,
            ..Program::default()
        })
    }
}
