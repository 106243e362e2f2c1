//! A sieve: says of nearly every key that a large map does not have it, from one word of memory.
//!
//! Each message asks whether a record at rest has its token, and whether its key is held up. With a million held messages
//! those maps lie in no cache, and the answer is nearly always no. A sieve is a byte for each key at the most.

/// Bits of memory for each key when it is full, twice as many when it is made: what is asked at random places is to stay
/// close. With two of them set, one absent key in six seems to be there, or one in twenty (a Bloom filter, its bits in one word:
/// Putze, Sanders and Singler 2007).
const BITS: usize = 4;
/// Keys that the smallest one has room for.
const LEAST: usize = 64;

/// Which keys may be in a map. A key that was taken out of the map may stay in here, until the sieve is made anew.
#[derive(Debug)]
pub(super) struct Sieve {
    /// As many as a power of two.
    words: Box<[u64]>,
    /// Keys that were added since it was made.
    added: usize,
}

impl Default for Sieve {
    fn default() -> Self {
        Self {
            words: vec![0].into(),
            added: LEAST,
        }
    }
}

impl Sieve {
    /// Adds the hash of a key that is now in the map. Made anew from the hashes of all that are, it has room for as many
    /// again: so however many come and go, each costs the same.
    pub(super) fn add(&mut self, hash: u64, all: impl ExactSizeIterator<Item = u64>) {
        if self.added * BITS >= self.words.len() * 64 {
            self.make(all);
        }
        self.set(hash);
    }

    fn make(&mut self, all: impl ExactSizeIterator<Item = u64>) {
        let room = (2 * all.len()).max(LEAST).next_power_of_two();
        self.words = vec![0; (room * BITS).div_ceil(64)].into();
        self.added = 0;
        all.for_each(|hash| self.set(hash));
    }

    fn set(&mut self, hash: u64) {
        let place = self.place(hash);
        if let Some(word) = self.words.get_mut(place.at as usize) {
            *word |= place.bits;
        }
        self.added += 1;
    }

    /// Whether the map may have the key of that place. `false` is sure.
    pub(super) fn may_have(&self, place: Place) -> bool {
        let word = self.words.get(place.at as usize).copied().unwrap_or_default();
        word & place.bits == place.bits
    }

    /// Where a hash is. Good until something is added.
    pub(super) const fn place(&self, hash: u64) -> Place {
        // Whatever the hash is made of, all of it counts: of a message key's the lower half says little (Knuth's
        // multiplicative hash, with the upper half brought down between two of them).
        const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;
        let mixed = hash.wrapping_mul(FACTOR);
        let mixed = (mixed ^ mixed >> 32).wrapping_mul(FACTOR);
        Place {
            at: (mixed >> 32) as u32 & (self.words.len() as u32).wrapping_sub(1),
            bits: 1 << (mixed >> 26 & 63) | 1 << (mixed >> 20 & 63),
        }
    }
}

/// A word of a sieve, and two bits of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    at: u32,
    bits: u64,
}

impl Default for Place {
    /// Of nothing: no sieve has it, as long as it has one bit to spare.
    fn default() -> Self {
        Self {
            at: 0,
            bits: u64::MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds so many keys, of which each was in the map before the next came.
    fn filled(hashes: &[u64]) -> Sieve {
        let mut sieve = Sieve::default();
        for (added, hash) in hashes.iter().enumerate() {
            sieve.add(*hash, hashes[..added].iter().copied());
        }
        sieve
    }

    #[test]
    fn it_never_denies_a_key_that_is_there() {
        let mut random = fastrand::Rng::with_seed(4);
        for count in [1, 2, 63, 64, 65, 1_000, 20_000] {
            let hashes: Vec<u64> = (0..count).map(|_| random.u64(..)).collect();
            let sieve = filled(&hashes);
            assert!(
                hashes.iter().all(|hash| sieve.may_have(sieve.place(*hash))),
                "{count}"
            );
            // As a message key is hashed: half of it says only how long it is.
            let lopsided: Vec<u64> = (0..count).map(|key| key << 32 | 8).collect();
            let sieve = filled(&lopsided);
            assert!(
                lopsided.iter().all(|hash| sieve.may_have(sieve.place(*hash))),
                "{count}"
            );
        }
    }

    #[test]
    fn it_denies_most_of_the_others_however_it_was_filled() {
        let random = fastrand::Rng::with_seed(4);
        let dense = |n: u64| n << 32 | 8;
        for count in [64, 1_000, 262_144, 300_000] {
            let uniform = {
                let mut random = random.clone();
                filled(&(0..count).map(|_| random.u64(..)).collect::<Vec<_>>())
            };
            let lopsided = filled(&(0..count).map(dense).collect::<Vec<_>>());
            for (name, sieve) in [("uniform", uniform), ("lopsided", lopsided)] {
                let wrong = (count..count + 10_000)
                    .filter(|n| sieve.may_have(sieve.place(dense(*n))))
                    .count();
                assert!(wrong < 2_500, "{name}, {count}: {wrong} of 10000");
            }
        }
    }

    #[test]
    fn what_comes_and_goes_does_not_fill_it() {
        let mut sieve = Sieve::default();
        // One at a time is in the map.
        for hash in 0..1_000_000_u64 {
            sieve.add(hash, std::iter::once(hash.saturating_sub(1)));
            assert!(sieve.may_have(sieve.place(hash)));
        }
        assert!(sieve.words.len() <= 8, "{}", sieve.words.len());
    }
}
