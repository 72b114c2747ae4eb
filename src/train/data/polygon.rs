//! Polygons to masks exactly as COCO's own tools do it (pycocotools `rleFrPoly`), so that training and evaluation speak of
//! the same pixels.
//!
//! The boundary is drawn on a grid five times finer; where it crosses the centre line of a pixel column, the crossing is
//! rounded up to a row. The sorted crossings, as column-major positions, are the ends of the runs (even-odd rule).

/// How much finer the grid is on which the boundary is drawn.
const SCALE: f64 = 5.0;

/// Column-major run lengths (first run outside) of the polygon `xy` = x0, y0, x1, y1, ... in pixels, clipped to the
/// `height` x `width` image. `xy` holds whole points, at least one; coordinates are finite and of a size that fits `i32`
/// after scaling.
pub(super) fn run_lengths(xy: &[f64], height: usize, width: usize) -> Vec<u32> {
    let points: Vec<[i32; 2]> =
        xy.as_chunks::<2>().0.iter().map(|p| p.map(|v| (SCALE * v + 0.5) as i32)).collect();
    let mut crossings: Vec<u32> = Vec::new();
    let mut before: Option<[i32; 2]> = None;
    for (i, &start) in points.iter().enumerate() {
        walk_edge(start, points[(i + 1) % points.len()], |u, v| {
            if let Some([last_u, last_v]) = before.replace([u, v]) {
                crossings.extend(crossing([last_u, u], [last_v, v], height, width));
            }
        });
    }
    crossings.sort_unstable();
    crossings.push((height * width) as u32);
    // Differences of the sorted crossings; a run of length zero joins its neighbours.
    let mut runs: Vec<u32> = Vec::with_capacity(crossings.len());
    let (mut last, mut join) = (0, false);
    for position in crossings {
        let run = position - last;
        last = position;
        match runs.last_mut() {
            Some(end) if join => {
                *end += run;
                join = false;
            }
            Some(_) if run == 0 => join = true,
            _ => runs.push(run),
        }
    }
    runs
}

/// Visits the points of the fine grid from `start` to `end`, both included.
fn walk_edge([mut xs, mut ys]: [i32; 2], [mut xe, mut ye]: [i32; 2], mut visit: impl FnMut(i32, i32)) {
    let (dx, dy) = ((xe - xs).abs(), (ye - ys).abs());
    // Lines are rasterised in the direction of the growing major axis, so that both directions give the same points.
    let flip = (dx >= dy && xs > xe) || (dx < dy && ys > ye);
    if flip {
        (xs, xe, ys, ye) = (xe, xs, ye, ys);
    }
    if dx >= dy {
        let slope = if dx == 0 { 0.0 } else { f64::from(ye - ys) / f64::from(dx) };
        for d in 0..=dx {
            let t = if flip { dx - d } else { d };
            visit(t + xs, (f64::from(ys) + slope * f64::from(t) + 0.5) as i32);
        }
    } else {
        let slope = f64::from(xe - xs) / f64::from(dy);
        for d in 0..=dy {
            let t = if flip { dy - d } else { d };
            visit((f64::from(xs) + slope * f64::from(t) + 0.5) as i32, t + ys);
        }
    }
}

/// The column-major position where the step from `u[0], v[0]` to `u[1], v[1]` crosses the centre line of a pixel column.
fn crossing(u: [i32; 2], v: [i32; 2], height: usize, width: usize) -> Option<u32> {
    if u[0] == u[1] {
        return None;
    }
    let left = if u[1] < u[0] { u[1] } else { u[1] - 1 };
    let x = (f64::from(left) + 0.5) / SCALE - 0.5;
    if x.floor() != x || x < 0.0 || x > width as f64 - 1.0 {
        return None;
    }
    let y = ((f64::from(v[0].min(v[1])) + 0.5) / SCALE - 0.5).clamp(0.0, height as f64).ceil();
    Some((x as usize * height + y as usize) as u32)
}
