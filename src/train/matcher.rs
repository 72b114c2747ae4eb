//! Exact rectangular assignment: which proposal answers for which annotated object.
//!
//! Shortest augmenting paths with dual variables (Jonker and Volgenant; the rectangular form of Crouse, "On
//! implementing 2D rectangular assignment algorithms", 2016), in double precision, `O(min^2 max)`. Ties are
//! broken by position, so the same costs give the same pairs everywhere.

/// Solves assignment problems, reusing its memory.
#[derive(Debug, Default)]
pub struct Matcher {
    costs: Vec<f64>,
    /// Dual variables of rows and columns.
    u: Vec<f64>,
    v: Vec<f64>,
    shortest: Vec<f64>,
    /// Row before each column on the current path.
    path: Vec<usize>,
    column_of: Vec<Option<usize>>,
    row_of: Vec<Option<usize>>,
    row_seen: Vec<bool>,
    column_seen: Vec<bool>,
    remaining: Vec<usize>,
}

impl Matcher {
    /// A solver with memory for up to so many proposals and objects.
    pub fn with_capacity(proposals: usize, objects: usize) -> Self {
        let (rows, columns) = (proposals.min(objects), proposals.max(objects));
        Matcher {
            costs: Vec::with_capacity(rows * columns),
            u: Vec::with_capacity(rows),
            v: Vec::with_capacity(columns),
            shortest: Vec::with_capacity(columns),
            path: Vec::with_capacity(columns),
            column_of: Vec::with_capacity(rows),
            row_of: Vec::with_capacity(columns),
            row_seen: Vec::with_capacity(rows),
            column_seen: Vec::with_capacity(columns),
            remaining: Vec::with_capacity(columns),
        }
    }

    /// Assigns every object to one proposal, or every proposal to one object if there are more objects, at
    /// the least total cost.
    ///
    /// `costs` are rows of `stride` entries, one row a proposal, whose first `objects` entries count.
    /// `matched` receives the object of each proposal, `None` for proposals left over; its length is the
    /// number of proposals.
    ///
    /// Returns false, with nothing matched, if a cost is NaN or infinite.
    pub fn assign(
        &mut self,
        costs: &[f32],
        stride: usize,
        objects: usize,
        matched: &mut [Option<usize>],
    ) -> bool {
        matched.fill(None);
        let proposals = matched.len();
        // Rows are the smaller side.
        let flipped = objects < proposals;
        let (rows, columns) = if flipped { (objects, proposals) } else { (proposals, objects) };
        self.costs.clear();
        for row in 0..rows {
            for column in 0..columns {
                let (proposal, object) = if flipped { (column, row) } else { (row, column) };
                self.costs.push(f64::from(costs[proposal * stride + object]));
            }
        }
        if self.costs.iter().any(|cost| !cost.is_finite()) {
            return false;
        }
        self.solve(rows, columns);
        for (row, column) in self.column_of.iter().enumerate() {
            if let Some(column) = *column {
                let (proposal, object) = if flipped { (column, row) } else { (row, column) };
                matched[proposal] = Some(object);
            }
        }
        true
    }

    fn solve(&mut self, rows: usize, columns: usize) {
        reset(&mut self.u, rows, 0.0);
        reset(&mut self.v, columns, 0.0);
        reset(&mut self.path, columns, 0);
        reset(&mut self.column_of, rows, None);
        reset(&mut self.row_of, columns, None);
        for row in 0..rows {
            let (sink, least) = self.augmenting_path(row, columns);
            self.u[row] += least;
            for other in (0..rows).filter(|&other| self.row_seen[other] && other != row) {
                if let Some(column) = self.column_of[other] {
                    self.u[other] += least - self.shortest[column];
                }
            }
            for column in (0..columns).filter(|&column| self.column_seen[column]) {
                self.v[column] -= least - self.shortest[column];
            }
            // Flip the pairs along the path.
            let mut column = sink;
            loop {
                let on_path = self.path[column];
                self.row_of[column] = Some(on_path);
                let next = self.column_of[on_path].replace(column);
                match next {
                    Some(next) if on_path != row => column = next,
                    _ => break,
                }
            }
        }
    }

    /// The cheapest way from `row` to a free column: that column and the cost.
    fn augmenting_path(&mut self, row: usize, columns: usize) -> (usize, f64) {
        reset(&mut self.shortest, columns, f64::INFINITY);
        reset(&mut self.row_seen, self.u.len(), false);
        reset(&mut self.column_seen, columns, false);
        self.remaining.clear();
        // Backwards, as the reference implementation does: it decides ties.
        self.remaining.extend((0..columns).rev());
        let (mut current, mut least) = (row, 0.0);
        loop {
            self.row_seen[current] = true;
            let mut best = 0;
            let mut lowest = f64::INFINITY;
            for (at, &column) in self.remaining.iter().enumerate() {
                let reduced =
                    least + self.costs[current * columns + column] - self.u[current] - self.v[column];
                if reduced < self.shortest[column] {
                    self.path[column] = current;
                    self.shortest[column] = reduced;
                }
                let cost = self.shortest[column];
                // Among equals a free column ends the search at once.
                if cost < lowest || (cost == lowest && self.row_of[column].is_none()) {
                    (lowest, best) = (cost, at);
                }
            }
            least = lowest;
            let column = self.remaining.swap_remove(best);
            self.column_seen[column] = true;
            match self.row_of[column] {
                None => return (column, least),
                Some(next) => current = next,
            }
        }
    }
}

fn reset<T: Clone>(values: &mut Vec<T>, len: usize, value: T) {
    values.clear();
    values.resize(len, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Total cost of the best assignment by trying all of them.
    fn exhaustive(costs: &[f32], proposals: usize, objects: usize) -> f64 {
        fn go(costs: &[f32], objects: usize, left: &mut Vec<usize>, object: usize, skips: usize) -> f64 {
            if object == objects {
                return 0.0;
            }
            let mut best = f64::INFINITY;
            for i in 0..left.len() {
                let proposal = left.swap_remove(i);
                let cost = f64::from(costs[proposal * objects + object]);
                best = best.min(cost + go(costs, objects, left, object + 1, skips));
                left.push(proposal);
                let last = left.len() - 1;
                left.swap(i, last);
            }
            if skips > 0 {
                best = best.min(go(costs, objects, left, object + 1, skips - 1));
            }
            best
        }
        let skips = objects.saturating_sub(proposals);
        go(costs, objects, &mut (0..proposals).collect(), 0, skips)
    }

    #[test]
    fn least_cost_of_all_assignments() {
        let mut state = 1u64;
        let mut matcher = Matcher::default();
        for round in 0..300 {
            let (proposals, objects) = (round % 6 + 1, round / 6 % 6);
            // Few distinct values in a third of the rounds: ties.
            let levels = if round % 3 == 0 { 4 } else { 1 << 20 };
            let costs: Vec<f32> = (0..proposals * objects)
                .map(|_| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    (state >> 33) as f32 % levels as f32 - levels as f32 / 2.0
                })
                .collect();
            let mut matched = vec![None; proposals];
            assert!(matcher.assign(&costs, objects, objects, &mut matched));
            let mut used: Vec<usize> = matched.iter().flatten().copied().collect();
            let total: f64 = matched
                .iter()
                .enumerate()
                .filter_map(|(p, o)| o.map(|o| f64::from(costs[p * objects + o])))
                .sum();
            used.sort_unstable();
            used.dedup();
            assert_eq!(used.len(), proposals.min(objects), "{matched:?}");
            assert_eq!(total, exhaustive(&costs, proposals, objects), "{proposals}x{objects} {costs:?}");
        }
    }

    #[test]
    fn unusable_costs_are_refused() {
        let mut matched = [Some(3); 2];
        assert!(!Matcher::default().assign(&[1.0, f32::NAN], 1, 1, &mut matched));
        assert_eq!(matched, [None; 2]);
    }
}
