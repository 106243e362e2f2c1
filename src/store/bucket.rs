//! Time buckets: closed records lie together by when their message was first seen, so that a whole bucket is
//! dropped at once.
//!
//! A bucket states both its ends. One made under another window length keeps them, so a changed window needs no
//! migration: old buckets of old lengths age out beside the new ones.

use std::cmp::Ordering;

use super::bucket_ms;

/// The records first seen in `start_ms..end_ms`, in milliseconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Bucket {
    pub(crate) start_ms: i64,
    pub(crate) end_ms: i64,
}

impl Bucket {
    /// The bucket of that moment, in a window of that length. Buckets are aligned to the epoch, also before it.
    pub(crate) const fn of(first_seen_ms: i64, window_ms: i64) -> Self {
        let length = bucket_ms(window_ms);
        // At the ends of time a bucket is cut short rather than wrapped around.
        let start_ms = first_seen_ms.div_euclid(length).saturating_mul(length);
        Self {
            start_ms,
            end_ms: start_ms.saturating_add(length),
        }
    }

    /// Whether a moment lies in both: only after a window changed its length.
    ///
    /// A record replaces one of the same token in every bucket that overlaps its own. Otherwise neither start nor
    /// end would say which of the two is the newer.
    pub(crate) const fn overlaps(self, other: Self) -> bool {
        self.start_ms < other.end_ms && other.start_ms < self.end_ms
    }
}

/// Newest first, so that an ordered list is in the order of the look-up.
impl Ord for Bucket {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.end_ms, other.start_ms).cmp(&(self.end_ms, self.start_ms))
    }
}

impl PartialOrd for Bucket {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_lies_in_its_bucket_on_both_sides_of_the_epoch() {
        for (moment, start_ms) in [(-11, -20), (-10, -10), (-1, -10), (0, 0), (9, 0), (10, 10)] {
            let end_ms = start_ms + 10;
            assert_eq!(Bucket::of(moment, 40), Bucket { start_ms, end_ms }, "{moment}");
        }
    }

    #[test]
    fn the_ends_of_time_have_buckets() {
        for moment in [i64::MIN, i64::MIN + 1, i64::MAX - 1, i64::MAX] {
            for window_ms in [0, 1, 40, i64::MAX] {
                let bucket = Bucket::of(moment, window_ms);
                assert!(bucket.start_ms <= bucket.end_ms, "{bucket:?}");
            }
        }
    }

    #[test]
    fn neighbours_do_not_overlap_and_a_longer_bucket_does() {
        let at = |moment, window_ms| Bucket::of(moment, window_ms);
        assert!(!at(5, 40).overlaps(at(10, 40)));
        assert!(at(15, 40).overlaps(at(0, 400)));
        assert!(at(0, 400).overlaps(at(15, 40)));
    }

    #[test]
    fn the_newest_comes_first() {
        let mut buckets = [Bucket::of(0, 40), Bucket::of(20, 40), Bucket::of(10, 40)];
        buckets.sort();
        assert_eq!(buckets.map(|bucket| bucket.start_ms), [20, 10, 0]);
    }
}
