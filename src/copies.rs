//! Copies: who may write to what this disk has of a partition, where its state moves.
//!
//! Four write to it, one at a time: the journal while the partition is ours, the restorer on its way here, the standby
//! while it is another's, and the sweep when it has left for good. An old write of one of them onto the work of another
//! would move the copy back, or leave a hole in it that passes for a whole window (Inv 5 and 8). So:
//!
//! - *Coming*: the poll thread [takes](Copies::take) the partition, from where on the standby begins no write of it; the
//!   restorer then [waits](Copies::restore) for the one that is under way, and only after that reads where the copy stands.
//! - *Going*: [left](Copies::leave) once its gate is closed. What was submitted before may still be on its way to the store,
//!   so it is free when the journal has settled, and when no reading of the restorer's that was begun for it goes on.
//! - *Deleting*: the sweep [stops](Copies::still) every write of the standby's for as long as it looks and deletes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use crate::store::{PartitionId, TopicId};

/// Shared by the poll thread, the restorer, the standby and the sweep. Nobody holds the board while it does anything else.
#[derive(Debug, Clone, Default)]
pub(crate) struct Copies {
    board: Arc<Mutex<Board>>,
    /// Held by the standby for each write, and by whoever must not meet one.
    writing: Arc<Mutex<()>>,
}

#[derive(Debug, Default)]
struct Board {
    /// Whether copies of what is not ours are kept up.
    keeps: bool,
    held: BTreeMap<PartitionId, Held>,
    /// How often each of them has been taken or restored: what was read of a copy before is not written to it after.
    turns: BTreeMap<PartitionId, Turn>,
    reading: BTreeSet<PartitionId>,
    /// Their changelogs cannot be read: nobody keeps them up.
    stopped: BTreeSet<PartitionId>,
}

/// From when on somebody keeps a copy up.
pub(crate) type Turn = u64;

#[derive(Debug)]
enum Held {
    /// Assigned to this process.
    Ours,
    /// It was, and the journal says here when nothing of that is on its way any more.
    Left(mpsc::Receiver<()>),
}

impl Board {
    /// Whether it was ours, and the journal may still write to it.
    fn is_unsettled(&mut self, id: PartitionId) -> bool {
        let Some(Held::Left(settled)) = self.held.get(&id) else {
            return false;
        };
        // A journal that has ended settles nothing more: what was on its way may have been applied, or not yet.
        let is_settled = settled.try_recv().is_ok();
        if is_settled {
            self.held.remove(&id);
        }
        !is_settled
    }

    fn free(&mut self, id: PartitionId) -> Option<Turn> {
        let is_free = !self.is_unsettled(id) && !self.held.contains_key(&id) && !self.reading.contains(&id);
        is_free.then(|| self.turns.get(&id).copied().unwrap_or(0))
    }

    fn turn(&mut self, id: PartitionId) {
        *self.turns.entry(id).or_default() += 1;
    }
}

impl Copies {
    /// Where copies of the windows of others are kept up, or only what is left of them.
    pub(crate) fn new(keeps: bool) -> Self {
        let board = Board {
            keeps,
            ..Board::default()
        };
        Self {
            board: Arc::new(Mutex::new(board)),
            writing: Arc::default(),
        }
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        // Every change is one step, so a panic elsewhere leaves nothing half done.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The partition is assigned here. Does not wait.
    pub(crate) fn take(&self, id: PartitionId) {
        let mut board = self.board();
        board.held.insert(id, Held::Ours);
        board.turn(id);
        board.stopped.remove(&id);
    }

    /// They are not ours any more, and their gates are closed. `settling` asks the journal to say when nothing submitted
    /// until now is on its way.
    pub(crate) fn leave(&self, ids: &[PartitionId], settling: impl Fn() -> mpsc::Receiver<()>) {
        let mut board = self.board();
        for id in ids {
            if let Some(held @ Held::Ours) = board.held.get_mut(id) {
                *held = Held::Left(settling());
            }
        }
    }

    /// Every partition that is ours.
    pub(crate) fn ours(&self) -> Vec<PartitionId> {
        let board = self.board();
        let ours = board.held.iter().filter(|(_, held)| matches!(held, Held::Ours));
        ours.map(|(id, _)| *id).collect()
    }

    /// The restorer reads that partition for as long as it keeps what this returns. When it returns, whatever the standby
    /// was writing is in the store.
    pub(crate) fn restore(&self, id: PartitionId) -> Restoring {
        let written = self.still();
        let mut board = self.board();
        board.reading.insert(id);
        board.turn(id);
        drop(board);
        drop(written);
        let copies = self.clone();
        Restoring { copies, id }
    }

    /// Since when a copy of it may be kept up; `None` where it may not.
    pub(crate) fn free(&self, id: PartitionId) -> Option<Turn> {
        let mut board = self.board();
        board.free(id).filter(|_| !board.stopped.contains(&id))
    }

    /// The standby writes to that copy for as long as it keeps what this returns, what it has read since that turn; `None`
    /// where it must not.
    pub(crate) fn write(&self, id: PartitionId, since: Turn) -> Option<MutexGuard<'_, ()>> {
        let writing = self.still();
        (self.board().free(id) == Some(since)).then_some(writing)
    }

    /// The standby writes nothing for as long as this is kept.
    pub(crate) fn still(&self) -> MutexGuard<'_, ()> {
        // It guards no value.
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody can keep that copy up.
    pub(crate) fn stop(&self, id: PartitionId) {
        self.board().stopped.insert(id);
    }

    /// How many copies of that topic nobody can keep up.
    pub(crate) fn stopped_of(&self, topic: TopicId) -> usize {
        let board = self.board();
        board.stopped.iter().filter(|id| id.topic == topic).count()
    }

    /// Whether that copy is somebody's work: it does not count as left behind, however long nothing has been written to it.
    pub(crate) fn are_kept(&self, id: PartitionId) -> bool {
        let mut board = self.board();
        board.is_unsettled(id) || board.reading.contains(&id) || (board.keeps && !board.stopped.contains(&id))
    }
}

/// A partition that the restorer reads.
#[derive(Debug)]
pub(crate) struct Restoring {
    copies: Copies,
    id: PartitionId,
}

impl Drop for Restoring {
    fn drop(&mut self) {
        self.copies.board().reading.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;

    const ID: PartitionId = PartitionId {
        topic: TopicId(0),
        partition: 0,
    };

    fn journal() -> (mpsc::Sender<()>, impl Fn() -> mpsc::Receiver<()>) {
        let (applied, settled) = mpsc::channel();
        let settled = Mutex::new(Some(settled));
        (applied, move || settled.lock().unwrap().take().unwrap())
    }

    #[test]
    fn a_partition_that_is_ours_is_not_written_to_as_a_copy() {
        let copies = Copies::new(true);
        let turn = copies.free(ID).unwrap();
        assert!(copies.write(ID, turn).is_some(), "another's");
        copies.take(ID);
        assert!(copies.write(ID, turn).is_none() && copies.free(ID).is_none());
        assert_eq!(copies.ours(), [ID]);
    }

    #[test]
    fn one_that_was_ours_is_free_when_the_journal_has_settled() {
        let copies = Copies::new(true);
        copies.take(ID);
        let (applied, settling) = journal();
        copies.leave(&[ID], settling);
        assert!(copies.free(ID).is_none(), "a group of it may be on its way");
        // Told twice: the second time it is not ours any more, and nothing is asked.
        copies.leave(&[ID], || panic!("it has been left already"));
        applied.send(()).unwrap();
        assert!(copies.are_kept(ID) && copies.free(ID).is_some());
        assert!(copies.free(ID).is_some(), "asked again");
    }

    /// Assigned to oneself again at once: that the journal has settled the assignment before says nothing of this one.
    #[test]
    fn an_earlier_assignment_that_is_settled_does_not_free_a_later_one() {
        let copies = Copies::new(true);
        copies.take(ID);
        let (first, settling) = journal();
        copies.leave(&[ID], settling);
        copies.take(ID);
        let (second, settling) = journal();
        copies.leave(&[ID], settling);
        // Nobody listens there any more.
        let _ = first.send(());
        assert!(copies.free(ID).is_none());
        second.send(()).unwrap();
        assert!(copies.free(ID).is_some());
    }

    #[test]
    fn a_journal_that_has_ended_frees_nothing() {
        let copies = Copies::new(true);
        copies.take(ID);
        let (applied, settling) = journal();
        copies.leave(&[ID], settling);
        drop(applied);
        assert!(copies.free(ID).is_none());
    }

    /// A reading that nobody wants any more still writes until it notices.
    #[test]
    fn what_the_restorer_still_reads_is_not_free() {
        let copies = Copies::new(true);
        let turn = copies.free(ID).unwrap();
        let restoring = copies.restore(ID);
        assert!(copies.write(ID, turn).is_none() && copies.free(ID).is_none());
        drop(restoring);
        let later = copies.free(ID).unwrap();
        assert!(copies.write(ID, later).is_some());
        assert!(copies.write(ID, turn).is_none(), "read before the restorer wrote");
    }

    /// The hand-over: where the copy stands is read after the last write of the standby's.
    #[test]
    fn the_restorer_waits_for_the_write_that_is_under_way() {
        let copies = Copies::new(true);
        let (begun, restored) = (Arc::new(Mutex::new(false)), Arc::new(Mutex::new(false)));
        let writing = copies.write(ID, 0).unwrap();
        copies.take(ID);
        let restorer = {
            let (copies, begun, restored) = (copies.clone(), Arc::clone(&begun), Arc::clone(&restored));
            thread::spawn(move || {
                *begun.lock().unwrap() = true;
                let restoring = copies.restore(ID);
                *restored.lock().unwrap() = true;
                drop(restoring);
            })
        };
        while !*begun.lock().unwrap() {
            thread::yield_now();
        }
        // It has all the time to be wrong in.
        thread::park_timeout(Duration::from_millis(100));
        assert!(!*restored.lock().unwrap(), "it reads while the standby writes");
        drop(writing);
        restorer.join().unwrap();
        assert!(*restored.lock().unwrap());
    }

    #[test]
    fn a_copy_that_cannot_be_kept_up_is_tried_again_after_it_was_here() {
        let copies = Copies::new(true);
        copies.stop(ID);
        assert!(copies.free(ID).is_none() && !copies.are_kept(ID));
        assert_eq!(copies.stopped_of(ID.topic), 1);
        copies.take(ID);
        let (applied, settling) = journal();
        copies.leave(&[ID], settling);
        applied.send(()).unwrap();
        assert!(copies.free(ID).is_some() && copies.are_kept(ID));
    }
}
