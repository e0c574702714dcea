//! Minimums as sets: for some values of a figure, who has at least that much.

use super::bits::Bits;

/// At most so many values of one figure have a set; between them rows are looked at one by one.
const MOST: usize = 48;

/// Sets of one figure.
#[derive(Debug, Clone, Default)]
pub(super) struct Levels {
    /// Rising; the lowest value that any row has needs no set.
    bounds: Vec<u64>,
    sets: Vec<Bits>,
}

impl Levels {
    /// Chooses the values from those that occur, so that steps between them are about equally long.
    pub(super) fn new(values: &[u64]) -> Self {
        let mut sorted: Vec<u64> = values.to_vec();
        sorted.sort_unstable();
        let lowest = sorted.first().copied();
        let mut distinct = sorted.clone();
        distinct.dedup();
        let mut bounds: Vec<u64> = if distinct.len() <= MOST {
            distinct
        } else {
            (0..MOST)
                .filter_map(|n| sorted.get(n * sorted.len() / MOST).copied())
                .chain(sorted.last().copied())
                .collect()
        };
        bounds.dedup();
        bounds.retain(|bound| Some(*bound) != lowest);
        let sets = bounds
            .iter()
            .map(|bound| {
                let mut bits = Bits::new(values.len());
                for (at, value) in values.iter().enumerate() {
                    bits.put(at, value >= bound);
                }
                bits
            })
            .collect();
        Self { bounds, sets }
    }

    /// A set that holds everybody with at least `minimum`, if one says more than "all".
    pub(super) fn at_least(&self, minimum: u64) -> Option<&Bits> {
        let above = self.bounds.partition_point(|bound| *bound <= minimum);
        above.checked_sub(1).and_then(|at| self.sets.get(at))
    }

    /// Says what the row at a place has.
    pub(super) fn put(&mut self, at: usize, value: u64) {
        for (bound, set) in self.bounds.iter().zip(&mut self.sets) {
            set.put(at, value >= *bound);
        }
    }

    pub(super) fn sets_mut(&mut self) -> impl Iterator<Item = &mut Bits> {
        self.sets.iter_mut()
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.bounds.capacity() * 8 + self.sets.iter().map(|set| set.heap_bytes() + 24).sum::<usize>()
    }
}
