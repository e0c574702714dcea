//! Sets of places as bits.

/// A set of places below a length.
#[derive(Debug, Clone, Default)]
pub(super) struct Bits {
    words: Vec<u64>,
}

/// The bits of a word below `at % 64`.
const fn below(at: usize) -> u64 {
    (1 << (at % 64)) - 1
}

impl Bits {
    /// An empty set of places below `len`.
    pub(super) fn new(len: usize) -> Self {
        Self { words: vec![0; len.div_ceil(64)] }
    }

    pub(super) fn words(&self) -> &[u64] {
        &self.words
    }

    #[cfg(test)]
    pub(super) fn has(&self, at: usize) -> bool {
        self.words.get(at / 64).is_some_and(|word| word & (1 << (at % 64)) != 0)
    }

    pub(super) fn put(&mut self, at: usize, member: bool) {
        if let Some(word) = self.words.get_mut(at / 64) {
            *word = (*word & !(1 << (at % 64))) | (u64::from(member) << (at % 64));
        }
    }

    /// Makes room for places below `len`.
    pub(super) fn reach(&mut self, len: usize) {
        if self.words.len() < len.div_ceil(64) {
            self.words.resize(len.div_ceil(64), 0);
        }
    }

    /// Moves the places from `at` to before `end - 1` up by one; `at` is then empty, and what was at `end - 1` is gone.
    pub(super) fn open(&mut self, at: usize, end: usize) {
        if at >= end {
            return;
        }
        let (first, last) = (at / 64, (end - 1) / 64);
        // What lies behind `end` in the last word stays.
        let kept = if end.is_multiple_of(64) { 0 } else { self.words[last] & !below(end) };
        for word in (first + 1..=last).rev() {
            self.words[word] = (self.words[word] << 1) | (self.words[word - 1] >> 63);
        }
        let low = self.words[first] & below(at);
        self.words[first] = low | ((self.words[first] & !below(at)) << 1);
        if !end.is_multiple_of(64) {
            self.words[last] = (self.words[last] & below(end)) | kept;
        }
    }

    /// Moves the places after `at` and before `end` down by one; `end - 1` is then empty.
    pub(super) fn close(&mut self, at: usize, end: usize) {
        if at >= end {
            return;
        }
        let (first, last) = (at / 64, (end - 1) / 64);
        let kept = if end.is_multiple_of(64) { 0 } else { self.words[last] & !below(end) };
        if !end.is_multiple_of(64) {
            self.words[last] &= below(end);
        }
        let low = self.words[first] & below(at);
        let high = (self.words[first] >> 1) & !below(at);
        self.words[first] = low | high;
        for word in first + 1..=last {
            self.words[word - 1] |= self.words[word] << 63;
            self.words[word] >>= 1;
        }
        self.words[last] |= kept;
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.words.capacity() * 8
    }
}

/// The first member of `words` at or after `from` and before `end`. `words` begin with the word of place `64 * first_word`.
pub(super) fn next(words: &[u64], first_word: usize, from: usize, end: usize) -> Option<usize> {
    let mut at = from;
    while at < end {
        let word = words.get(at / 64 - first_word)? & !below(at);
        if word != 0 {
            let found = at - at % 64 + word.trailing_zeros() as usize;
            return (found < end).then_some(found);
        }
        at = at - at % 64 + 64;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bits(places: &[bool]) -> Bits {
        let mut bits = Bits::new(places.len());
        for (at, member) in places.iter().enumerate() {
            bits.put(at, *member);
        }
        bits
    }

    fn places(bits: &Bits, len: usize) -> Vec<bool> {
        (0..len).map(|at| bits.has(at)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn places_move_as_in_a_list(
            list in proptest::collection::vec(any::<bool>(), 1..300), a in 0_usize..300, b in 0_usize..300,
        ) {
            let (at, end) = (a.min(b) % list.len(), a.max(b) % list.len() + 1);
            prop_assume!(at < end);
            let mut opened = bits(&list);
            opened.open(at, end);
            let mut expected = list.clone();
            expected.remove(end - 1);
            expected.insert(at, false);
            prop_assert_eq!(places(&opened, list.len()), expected);

            let mut closed = bits(&list);
            closed.close(at, end);
            let mut expected = list.clone();
            expected.remove(at);
            expected.insert(end - 1, false);
            prop_assert_eq!(places(&closed, list.len()), expected);

            let first = (at..end).find(|at| list[*at]);
            prop_assert_eq!(next(bits(&list).words(), 0, at, end), first);
            let skipped = at / 64;
            prop_assert_eq!(next(&bits(&list).words()[skipped..], skipped, at, end), first);
        }
    }
}
