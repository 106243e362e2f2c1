//! Worker: a thread with an inbox, which ends when its handle is dropped.
//!
//! Whoever drops the handle waits for the end: the thread may hold the store, whose directory is free only without it. A
//! thread that works by the clock waits at its inbox, to which nothing is ever sent, and wakes when that is closed.

use std::convert::Infallible;
use std::sync::mpsc;
use std::thread;

/// The handle of the thread.
pub(crate) struct Worker<T = Infallible> {
    /// Closed by being dropped, which ends the thread.
    inbox: Option<mpsc::Sender<T>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl<T: Send + 'static> Worker<T> {
    /// Starts the thread. `work` has to return once its inbox is closed.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub(crate) fn start(
        name: &str,
        work: impl FnOnce(mpsc::Receiver<T>) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (inbox, jobs) = mpsc::channel();
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || work(jobs))?;
        Ok(Self {
            inbox: Some(inbox),
            thread: Some(thread),
        })
    }

    /// Puts a job into the inbox. Nothing, where the thread is gone: it has panicked, and said so.
    pub(crate) fn send(&self, job: T) {
        if let Some(inbox) = &self.inbox {
            let _ = inbox.send(job);
        }
    }
}

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        self.inbox = None;
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so itself.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn what_was_sent_is_worked_off_before_the_handle_is_gone() {
        let done = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&done);
        let work = move |jobs: mpsc::Receiver<u32>| noted.lock().unwrap().extend(jobs);
        let worker = Worker::start("test", work).unwrap();
        (1..=100).for_each(|job| worker.send(job));
        drop(worker);
        assert_eq!(*done.lock().unwrap(), (1..=100).collect::<Vec<_>>());
    }
}
