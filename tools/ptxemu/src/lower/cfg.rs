//! Control-flow graph of a function: basic blocks, successors, immediate post-dominators.

use super::{Control, Pre};

/// A basic block: instructions `start..end`.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub start: usize,
    pub end: usize,
    pub successors: Vec<usize>,
}

/// The graph. Block numbers follow the order of the text.
pub(crate) struct Graph {
    pub blocks: Vec<Block>,
    /// Block that starts at each instruction, if one does.
    pub block_at: Vec<Option<usize>>,
    /// Immediate post-dominator of each block; `None` if paths meet at the function's end only.
    pub post: Vec<Option<usize>>,
}

impl Graph {
    /// Builds the graph; `starts` maps statements to instructions. The last instruction must end its path.
    pub fn new(pre: &[Pre], starts: &[usize]) -> Graph {
        let n = pre.len();
        let mut leader = vec![false; n + 1];
        leader[0] = true;
        for (at, ins) in pre.iter().enumerate() {
            match &ins.control {
                Control::Branch(target) => {
                    leader[starts[*target]] = true;
                    leader[at + 1] = true;
                }
                Control::Table(targets) => {
                    targets.iter().for_each(|t| leader[starts[*t]] = true);
                    leader[at + 1] = true;
                }
                Control::End => leader[at + 1] = true,
                Control::Next | Control::Call { .. } => {}
            }
        }
        let mut blocks = Vec::new();
        let mut block_at = vec![None; n + 1];
        for start in (0..n).filter(|at| leader[*at]) {
            block_at[start] = Some(blocks.len());
            let end = (start + 1..=n).find(|at| *at == n || leader[*at]).unwrap_or(n);
            blocks.push(Block { start, end, successors: Vec::new() });
        }
        for b in 0..blocks.len() {
            let end = blocks[b].end;
            let last = &pre[end - 1];
            let mut next: Vec<usize> = Vec::new();
            let guarded = last.guard != 0;
            let mut go = |at: usize| next.extend(block_at[at]);
            match &last.control {
                Control::Branch(target) => {
                    if guarded {
                        go(end);
                    }
                    go(starts[*target]);
                }
                Control::Table(targets) => {
                    if guarded {
                        go(end);
                    }
                    targets.iter().for_each(|t| go(starts[*t]));
                }
                Control::End => {
                    if guarded {
                        go(end);
                    }
                }
                Control::Next | Control::Call { .. } => go(end),
            }
            next.dedup();
            blocks[b].successors = next;
        }
        let post = post_dominators(&blocks);
        Graph { blocks, block_at, post }
    }
}

/// Cooper, Harvey and Kennedy's iteration on the reversed graph, with a virtual exit after every block that
/// has no successor.
fn post_dominators(blocks: &[Block]) -> Vec<Option<usize>> {
    let n = blocks.len();
    let exit = n;
    let mut predecessors = vec![Vec::new(); n + 1];
    for (b, block) in blocks.iter().enumerate() {
        for s in &block.successors {
            predecessors[*s].push(b);
        }
        if block.successors.is_empty() {
            predecessors[exit].push(b);
        }
    }
    // Post-order of the reversed graph from the exit.
    let mut order = Vec::new();
    let mut number = vec![usize::MAX; n + 1];
    let mut seen = vec![false; n + 1];
    let mut stack = vec![(exit, 0)];
    seen[exit] = true;
    while let Some((b, next)) = stack.pop() {
        match predecessors[b].get(next) {
            Some(&p) => {
                stack.push((b, next + 1));
                if !seen[p] {
                    seen[p] = true;
                    stack.push((p, 0));
                }
            }
            None => {
                number[b] = order.len();
                order.push(b);
            }
        }
    }
    let mut post = vec![usize::MAX; n + 1];
    post[exit] = exit;
    let mut changed = true;
    while changed {
        changed = false;
        for &b in order.iter().rev().filter(|b| **b != exit) {
            let mut new = usize::MAX;
            let ends = blocks[b].successors.is_empty().then_some(exit);
            for s in blocks[b].successors.iter().copied().chain(ends) {
                if post[s] == usize::MAX {
                    continue;
                }
                new = if new == usize::MAX { s } else { meet(&post, &number, new, s) };
            }
            if post[b] != new {
                post[b] = new;
                changed = true;
            }
        }
    }
    post.truncate(n);
    post.into_iter().map(|p| (p < n).then_some(p)).collect()
}

fn meet(post: &[usize], number: &[usize], mut a: usize, mut b: usize) -> usize {
    while a != b {
        while number[a] < number[b] {
            a = post[a];
        }
        while number[b] < number[a] {
            b = post[b];
        }
    }
    a
}
