//! How many stages of the network a frame has time for.
//!
//! Every stage of a K-Net gives finished masks, and the next one better ones. On the CPU the stages of a
//! session with a deadline are segments of one plan, and whether the next one is begun is decided when one is
//! done; on a GPU every number of stages is a graph of its own, chosen before it is launched.

use super::session::Timings;
use std::time::{Duration, Instant};

/// What something took: for one that comes again and again, and is now and then left out.
#[derive(Clone, Copy, Debug, Default)]
struct Lately {
    /// The longest of the last times.
    worst: Duration,
    /// The shortest of the last times.
    best: Duration,
}

impl Lately {
    fn took(&mut self, time: Duration) {
        let spread = self.worst.saturating_sub(self.best);
        self.worst = time.max(self.worst - spread / 16);
        self.best = if self.best.is_zero() { time } else { time.min(self.best + spread / 256) };
    }

    /// It was left out for want of time. What was slow once is tried again after some tens of frames; what
    /// never was fast enough after some hundreds, which may make that frame late: the machine may have become
    /// faster, and nothing else tells.
    fn left_out(&mut self) {
        self.worst -= self.worst.saturating_sub(self.best) / 64 + self.worst / 4096;
    }
}

/// What frames of one input size took of late.
#[derive(Debug)]
pub(super) struct Pace {
    /// On the CPU of each stage, the first with all that comes before it; on a GPU of all stages up to each.
    runs: Vec<Lately>,
    /// From the network's results to masks.
    post: Lately,
}

impl Pace {
    pub(super) fn new(stages: usize) -> Pace {
        Pace { runs: vec![Lately::default(); stages.max(1)], post: Lately::default() }
    }

    /// The most stages whose graph, launched now, is expected to be done in `time`; at least one.
    #[cfg(feature = "cuda")]
    pub(super) fn affordable(&mut self, time: Duration) -> usize {
        let fits = |run: &Lately| run.worst + self.post.worst <= time;
        let stages = self.runs.iter().rposition(fits).map_or(1, |last| last + 1);
        self.runs[stages..].iter_mut().for_each(Lately::left_out);
        stages
    }
}

/// What a frame is held to.
pub(super) struct Limit<'a> {
    pub deadline: Duration,
    pub pace: &'a mut Pace,
    /// What the network's first run is called in the pace.
    pub first: usize,
}

/// One frame, from the call on.
pub(super) struct Frame<'a> {
    start: Instant,
    /// When the last part of it was done.
    latest: Instant,
    limit: Option<Limit<'a>>,
    pub timings: Timings,
}

impl<'a> Frame<'a> {
    pub(super) fn begin(start: Instant, limit: Option<Limit<'a>>) -> Frame<'a> {
        Frame { start, latest: Instant::now(), limit, timings: Timings::default() }
    }

    /// Whether the network's run `index` is to be begun: the first always, any other if it and the masks are
    /// expected to be done in time.
    pub(super) fn has_time_for(&mut self, index: usize) -> bool {
        let Some(Limit { deadline, pace, first }) = &mut self.limit else { return true };
        let run = &mut pace.runs[*first + index];
        let fits = index == 0 || self.latest - self.start + run.worst + pace.post.worst <= *deadline;
        if !fits {
            run.left_out();
        }
        fits
    }

    /// The time since the part before this one was done, which now is.
    fn part(&mut self) -> Duration {
        let now = Instant::now();
        now - std::mem::replace(&mut self.latest, now)
    }

    /// The photo is where the network finds it.
    pub(super) fn prepared(&mut self) {
        self.timings.pre = self.part();
    }

    /// The network's run `index` is done.
    pub(super) fn ran(&mut self, index: usize) {
        let time = self.part();
        self.timings.network += time;
        if let Some(Limit { pace, first, .. }) = &mut self.limit {
            pace.runs[*first + index].took(time);
        }
    }

    /// Its masks are made.
    pub(super) fn finished(&mut self) {
        self.timings.post = self.part();
        if let Some(Limit { pace, .. }) = &mut self.limit {
            pace.post.took(self.timings.post);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Frames whose stages take these milliseconds, by a clock of the test's: how many of the stages each
    /// runs.
    fn stages(pace: &mut Pace, deadline: u32, frames: usize, takes: [u32; 3]) -> Vec<usize> {
        let one = |_| {
            let limit = Limit { deadline: deadline * MS, pace, first: 0 };
            let mut frame = Frame::begin(Instant::now(), Some(limit));
            let mut done = 0;
            while done < 3 && frame.has_time_for(done) {
                frame.latest += takes[done] * MS;
                frame.limit.as_mut().unwrap().pace.runs[done].took(takes[done] * MS);
                done += 1;
            }
            done
        };
        (0..frames).map(one).collect()
    }

    #[test]
    fn stages_that_do_not_fit_are_left_out_and_tried_again() {
        let mut pace = Pace::new(3);
        // Nothing is known of the first frame: while there is time, a stage is begun.
        assert_eq!(stages(&mut pace, 10, 3, [5, 2, 2]), [3, 3, 3]);
        // A deadline that a stage does not meet: at once, and for long.
        assert!(stages(&mut pace, 8, 100, [5, 2, 2]).iter().all(|&done| done == 2));
        assert!(stages(&mut pace, 2, 10, [5, 2, 2]).iter().all(|&done| done == 1), "the first is always run");
        // The machine is slow for a frame, then as before: the stage comes back.
        let mut pace = Pace::new(3);
        stages(&mut pace, 20, 20, [5, 2, 2]);
        assert_eq!(stages(&mut pace, 20, 1, [5, 2, 30]), [3], "no clock sees this coming");
        let after = stages(&mut pace, 20, 200, [5, 2, 2]);
        assert_eq!((after[0], after[199]), (2, 3));
        // A stage that was too slow from the first is tried again, seldom.
        let mut pace = Pace::new(3);
        let tries = stages(&mut pace, 10, 4000, [5, 2, 4]).iter().filter(|&&done| done == 3).count();
        assert!((1..=12).contains(&tries), "{tries} of 4000 frames");
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn a_graph_is_chosen_before_its_launch() {
        let mut pace = Pace::new(3);
        for (stages, ms) in [(1, 5), (2, 7), (3, 9)] {
            (0..5).for_each(|_| pace.runs[stages - 1].took(ms * MS));
        }
        pace.post.took(MS);
        assert_eq!([12, 10, 9, 8, 6, 3].map(|ms| pace.affordable(ms * MS)), [3, 3, 2, 2, 1, 1]);
    }
}
