//! Where an assigned partition starts, and what is missing of its window.

use super::Facts;
use crate::broker::{self, Committed};
use crate::config::{Deleted, Durability, Start};
use crate::error::Error;
use crate::ledger::CommitPoint;
use crate::message::NextOffset;
use crate::store::{Position, StoreId};

/// What the decision goes by, besides the partition.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) store_id: StoreId,
    pub(crate) first: Start,
    pub(crate) deleted: Deleted,
    pub(crate) durability: Durability,
}

impl Rules {
    /// Where to start, and what is missing of the window, if anything is. `position` is what the store knows, which in
    /// replicated mode is what the changelog says.
    pub(crate) fn start(&self, position: Option<Position>, facts: &Facts) -> (CommitPoint, Option<String>) {
        let Some(committed) = &facts.committed else {
            // The broker has forgotten the offset (or never knew one), and the store has not: go on from there.
            if let Some(position) = position {
                return (
                    CommitPoint {
                        next: position.commit_point,
                        time_ms: position.time_ms,
                    },
                    None,
                );
            }
            let next = match self.first {
                Start::Latest => facts.high,
                _ => facts.low,
            };
            return (
                CommitPoint {
                    next: NextOffset(next),
                    time_ms: None,
                },
                None,
            );
        };
        match self.durability {
            Durability::Local => self.on_this_disk(committed, position),
            Durability::Replicated => by_the_changelog(committed, position),
        }
    }

    /// Only this store's own commits are covered by it.
    fn on_this_disk(
        &self,
        committed: &Committed,
        position: Option<Position>,
    ) -> (CommitPoint, Option<String>) {
        let next = committed.next;
        let Some(mark) = committed.mark else {
            let start = CommitPoint { next, time_ms: None };
            return (start, Some(by_a_stranger(next, position)));
        };
        let start = CommitPoint {
            next,
            time_ms: mark.time_ms,
        };
        if mark.store_id != self.store_id {
            return (
                start,
                Some(format!(
                    "offset {next} was committed with store {}, this is {}",
                    mark.store_id, self.store_id
                )),
            );
        }
        match position {
            Some(position) if position.commit_point >= next => (start, None),
            Some(position) => {
                let known = position.commit_point;
                (
                    start,
                    Some(format!(
                        "offset {next} was committed with this store, which only knows {known}: it is an older copy"
                    )),
                )
            }
            None => (
                start,
                Some(format!(
                    "offset {next} was committed with this store, which does not know the partition"
                )),
            ),
        }
    }

    /// Where the partition stood, if the group's offset has been set back since: on purpose, as by
    /// `kafka-consumer-groups --reset-offsets`.
    ///
    /// In local mode the broker knows a little less than the store after each crash: commits follow outcomes. Such a commit
    /// has this store's mark, however far behind it is, and one that was set has none. In replicated mode the offset and
    /// what the changelog knows are one transaction, so any difference was made.
    pub(crate) fn set_back(&self, position: Option<Position>, facts: &Facts) -> Option<NextOffset> {
        let committed = facts.committed.as_ref()?;
        let is_ours = self.durability == Durability::Local && committed.mark.is_some();
        let stood = position?.commit_point;
        (stood > committed.next && !is_ours).then_some(stood)
    }

    /// Where the log no longer has what comes next, somebody has to decide: nothing is guessed.
    pub(crate) fn within_the_log(
        &self,
        topic: &str,
        partition: i32,
        start: CommitPoint,
        facts: &Facts,
    ) -> Result<CommitPoint, Error> {
        let (topic, next) = (topic.to_owned(), start.next.0);
        let (low, high) = (facts.low, facts.high);
        if next > high {
            return Err(broker::Error::BeyondEnd {
                topic,
                partition,
                next,
                high,
            }
            .into());
        }
        if next >= low {
            return Ok(start);
        }
        if self.deleted == Deleted::Refuse {
            return Err(broker::Error::Deleted {
                topic,
                partition,
                next,
                low,
            }
            .into());
        }
        tracing::error!(
            %topic, partition, next, low,
            "the broker has deleted messages that nobody took; hapax goes on with the first that is left"
        );
        Ok(CommitPoint {
            next: NextOffset(low),
            ..start
        })
    }
}

/// A commit without a mark, beside what this store has recorded.
fn by_a_stranger(next: NextOffset, position: Option<Position>) -> String {
    let what = format!("offset {next} was committed by something that is not hapax");
    let Some(known) = position.map(|position| position.commit_point) else {
        return what;
    };
    match known.0 - next.0 {
        0 => what,
        back @ 1.. => format!(
            "{what}, and this store has recorded up to {known}: the offset was set back by {back}; whether another consumer has \
             been here meanwhile cannot be known"
        ),
        ahead => format!(
            "{what}, and this store has only recorded up to {known}: the offset was set forward by {}, over messages that this \
             store knows nothing of: skipped, or done by another consumer",
            -ahead
        ),
    }
}

/// The changelog covers whatever was committed with it, whichever store did: both are one transaction.
fn by_the_changelog(committed: &Committed, position: Option<Position>) -> (CommitPoint, Option<String>) {
    let next = committed.next;
    let marked_ms = committed.mark.and_then(|mark| mark.time_ms);
    let start = CommitPoint {
        next,
        time_ms: marked_ms
            .or(position.and_then(|position| position.time_ms))
            .filter(|_| !crate::crash::is_off("time")),
    };
    let missing = match position {
        Some(position) if position.commit_point >= next => None,
        Some(position) => Some(format!(
            "offset {next} was committed, and the changelog only knows {}: the offset was set forward by {}, over messages that \
             nobody has recorded here: skipped, or done by another consumer",
            position.commit_point,
            next.0 - position.commit_point.0
        )),
        None => Some(format!(
            "offset {next} was committed, and the changelog knows nothing of the partition: the group was another consumer's, or \
             the changelog was deleted"
        )),
    };
    (start, missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::CommitMark;

    const OWN: StoreId = StoreId([1; 16]);
    const OTHER: StoreId = StoreId([2; 16]);

    fn facts(committed: Option<(i64, Option<StoreId>)>) -> Facts {
        let committed = committed.map(|(next, store)| Committed {
            next: NextOffset(next),
            mark: store.map(|store_id| CommitMark {
                store_id,
                time_ms: Some(77),
            }),
        });
        Facts {
            committed,
            low: 3,
            high: 100,
        }
    }

    fn at(next: i64) -> Option<Position> {
        Some(Position {
            commit_point: NextOffset(next),
            time_ms: Some(55),
            acknowledged_ms: None,
            written_ms: 0,
        })
    }

    fn decide(first: Start, position: Option<Position>, facts: &Facts) -> (CommitPoint, Option<String>) {
        decide_in(Durability::Local, first, position, facts)
    }

    fn decide_in(
        durability: Durability,
        first: Start,
        position: Option<Position>,
        facts: &Facts,
    ) -> (CommitPoint, Option<String>) {
        let rules = Rules {
            store_id: OWN,
            first,
            deleted: Deleted::Refuse,
            durability,
        };
        rules.start(position, facts)
    }

    fn is_cold(position: Option<Position>, facts: &Facts) -> bool {
        decide(Start::Earliest, position, facts).1.is_some()
    }

    #[test]
    fn a_first_start_is_not_cold() {
        let (start, cold) = decide(Start::Earliest, None, &facts(None));
        assert_eq!((start.next, cold), (NextOffset(3), None));
        assert_eq!(decide(Start::Latest, None, &facts(None)).0.next, NextOffset(100));
    }

    #[test]
    fn a_restart_resumes_at_the_commit_with_its_partition_time() {
        let (start, cold) = decide(Start::Earliest, at(12), &facts(Some((10, Some(OWN)))));
        assert_eq!(
            (start, cold),
            (
                CommitPoint {
                    next: NextOffset(10),
                    time_ms: Some(77)
                },
                None
            )
        );
    }

    /// Schedule 14: ten days down, offsets retention seven.
    #[test]
    fn a_vanished_commit_resumes_from_the_stores_own_position() {
        let (start, cold) = decide(Start::Latest, at(12), &facts(None));
        assert_eq!(
            (start, cold),
            (
                CommitPoint {
                    next: NextOffset(12),
                    time_ms: Some(55)
                },
                None
            )
        );
    }

    /// Schedule 10: two members with a store each; an empty directory after a loss; a copy that is too old.
    #[test]
    fn what_this_store_does_not_cover_is_cold() {
        assert!(
            is_cold(at(12), &facts(Some((10, Some(OTHER))))),
            "another store served it meanwhile"
        );
        assert!(
            is_cold(None, &facts(Some((10, Some(OWN))))),
            "the partition is unknown here"
        );
        assert!(
            is_cold(at(9), &facts(Some((10, Some(OWN))))),
            "the store is older than the commit"
        );
        assert!(is_cold(None, &facts(Some((10, None)))), "somebody else's group");
    }

    /// `kafka-consumer-groups --reset-offsets` leaves no mark; a crash before the last commits leaves ours.
    #[test]
    fn an_offset_that_was_set_back_is_told_from_a_commit_that_was_not_acknowledged() {
        let back = |durability, next, known, mark| {
            let rules = Rules {
                store_id: OWN,
                first: Start::Earliest,
                deleted: Deleted::Refuse,
                durability,
            };
            rules.set_back(known, &facts(Some((next, mark))))
        };
        use Durability::{Local, Replicated};
        assert_eq!(back(Local, 10, at(90), None), Some(NextOffset(90)));
        assert_eq!(back(Local, 10, at(90), Some(OWN)), None, "a crash");
        assert_eq!(back(Replicated, 10, at(90), None), Some(NextOffset(90)));
        assert_eq!(back(Replicated, 10, at(11), Some(OTHER)), Some(NextOffset(11)));
        for durability in [Local, Replicated] {
            assert_eq!(back(durability, 10, at(10), None), None, "where it stood");
            assert_eq!(back(durability, 10, at(9), None), None, "forward");
            assert_eq!(back(durability, 10, None, None), None, "unknown here");
        }
    }

    /// What cannot be known is not guessed, and who is asked is told what can be.
    #[test]
    fn an_offset_that_was_set_is_cold_with_from_and_to_where_the_window_cannot_be_proven() {
        let said = |durability, position| {
            decide_in(durability, Start::Earliest, position, &facts(Some((10, None)))).1
        };
        let back = said(Durability::Local, at(90)).unwrap();
        assert!(
            back.contains("up to 90") && back.contains("set back by 80"),
            "{back}"
        );
        let ahead = said(Durability::Local, at(7)).unwrap();
        assert!(
            ahead.contains("up to 7") && ahead.contains("set forward by 3"),
            "{ahead}"
        );
        let ahead = said(Durability::Replicated, at(7)).unwrap();
        assert!(
            ahead.contains("only knows 7") && ahead.contains("set forward by 3"),
            "{ahead}"
        );
        assert_eq!(
            said(Durability::Replicated, at(90)),
            None,
            "the changelog knows all of it"
        );
    }

    /// What was committed with the changelog is covered by it, whoever did; what was committed without it is not.
    #[test]
    fn the_changelog_covers_what_was_committed_with_it() {
        let missing =
            |position, facts: &Facts| decide_in(Durability::Replicated, Start::Earliest, position, facts).1;
        assert_eq!(missing(at(10), &facts(Some((10, Some(OTHER))))), None);
        assert!(
            missing(None, &facts(Some((10, None))))
                .unwrap()
                .contains("nothing"),
            "an adopted group"
        );
        assert!(
            missing(at(9), &facts(Some((10, Some(OTHER)))))
                .unwrap()
                .contains("only knows 9")
        );
        assert_eq!(missing(None, &facts(None)), None, "a first start");
    }
}
