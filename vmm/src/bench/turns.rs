//! Several ways to do one thing, measured in turns: what disturbs one disturbs all.

use std::time::Instant;

use super::BenchError;
use super::table::median;

/// One measurement: nanoseconds for a unit of work.
pub(super) type Way<'a> = &'a mut dyn FnMut() -> Result<f64, BenchError>;

/// The median of `rounds` measurements of each way.
pub(super) fn in_turns<const N: usize>(
    rounds: usize,
    mut ways: [Way<'_>; N],
) -> Result<[f64; N], BenchError> {
    let mut figures: [Vec<f64>; N] = std::array::from_fn(|_| Vec::with_capacity(rounds));
    // The first of each warms caches and branch predictors.
    for round in 0..=rounds {
        for (way, figures) in ways.iter_mut().zip(&mut figures) {
            let figure = way()?;
            if round > 0 {
                figures.push(figure);
            }
        }
    }
    Ok(figures.map(|mut figures| median(&mut figures)))
}

/// Nanoseconds that `work` takes.
pub(super) fn time<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let result = work();
    (start.elapsed().as_secs_f64() * 1e9, result)
}

/// Nanoseconds that `once` takes for each of `items`. They are taken twice and the second time counts: whose
/// turn it was before has the caches no more.
pub(super) fn time_each<T: Copy>(items: &[T], mut once: impl FnMut(T)) -> f64 {
    items.iter().for_each(|&item| once(item));
    let (ns, ()) = time(|| items.iter().for_each(|&item| once(item)));
    ns / items.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_take_turns_and_the_first_round_does_not_count() {
        let order = std::cell::RefCell::new(String::new());
        let way = |name, figures: [f64; 4]| {
            let (order, mut figures) = (&order, figures.into_iter());
            move || {
                order.borrow_mut().push(name);
                Ok(figures.next().expect("a figure for each round"))
            }
        };
        let (mut a, mut b) = (way('a', [99.0, 3.0, 1.0, 2.0]), way('b', [0.0, 5.0, 6.0, 4.0]));
        let medians = in_turns(3, [&mut a, &mut b]).expect("no way fails");
        assert_eq!(medians, [2.0, 5.0]);
        assert_eq!(*order.borrow(), "abababab");
    }

    #[test]
    fn a_way_that_fails_ends_it() {
        let mut bad = || Err(BenchError::Guest("no".into()));
        assert!(in_turns(3, [&mut bad]).is_err());
    }
}
