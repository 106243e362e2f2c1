//! Partitions that arrive while others are served.

use super::*;
use crate::testing::Arriving;

/// In the machine's time: another thread is waited for.
const WITHIN: Duration = Duration::from_secs(60);

/// Serves what it has, and takes up what becomes known, until `done`.
async fn until(
    rig: &mut Rig,
    arriving: &mut Arriving,
    what: &str,
    mut done: impl FnMut(&mut Rig, &mut Arriving) -> bool,
) {
    #[expect(
        clippy::disallowed_methods,
        reason = "another thread is waited for, on the machine's clock"
    )]
    let since = std::time::Instant::now();
    while !done(rig, arriving) {
        #[expect(clippy::disallowed_methods, reason = "the same")]
        let waited = since.elapsed();
        assert!(waited < WITHIN, "{what}: not within {WITHIN:?}");
        rig.take_up(arriving).unwrap();
        rig.run_for(Duration::from_millis(20)).await;
        std::thread::yield_now();
    }
}

/// A peer died with its transaction open: until that times out nobody knows where its partition starts. The partition that
/// stays goes on meanwhile, and so does what else has come.
#[test]
fn a_partition_of_which_nothing_is_known_yet_keeps_no_other_waiting() {
    paused(async {
        let script = Script::ok();
        let mut rig = rig(Class::Idempotent, &script);
        rig.partitions(1);
        rig.start().await.unwrap();
        rig.partitions(4);
        let mut arriving = Arriving::new();
        arriving.answers.unstable(2, true);
        rig.arrive(&mut arriving, &[1, 2, 3]);
        let mut sent = 0;
        until(&mut rig, &mut arriving, "the others", |rig, _| {
            sent += 1;
            rig.send(0, message(&format!("kept-{sent}")));
            rig.served() == [0, 1, 3]
        })
        .await;
        // While it is asked for again and again.
        let asked = arriving.answers.questions();
        until(&mut rig, &mut arriving, "more questions", |rig, arriving| {
            sent += 1;
            rig.send(0, message(&format!("kept-{sent}")));
            rig.send(3, message(&format!("new-{sent}")));
            arriving.answers.questions() > asked + 2
        })
        .await;
        rig.run_for(A_WHILE).await;
        assert_eq!(rig.committed_offset(0), Some(NextOffset(sent)));
        assert!(rig.committed_offset(3).is_some_and(|next| next.0 > 0));
        assert_eq!((rig.served(), arriving.waiting()), (vec![0, 1, 3], 1));
        arriving.answers.unstable(2, false);
        until(&mut rig, &mut arriving, "the one", |rig, _| {
            rig.served() == [0, 1, 2, 3]
        })
        .await;
    });
}

/// It is another's for a while, who commits: what was known of the earlier assignment is worth nothing.
#[test]
fn a_partition_that_comes_back_starts_where_the_owner_in_between_stopped() {
    paused(async {
        let script = Script::ok();
        let mut rig = rig(Class::Idempotent, &script);
        rig.cold = crate::config::Cold::Run;
        rig.partitions(1);
        rig.start().await.unwrap();
        for token in ["a", "b", "c", "d"] {
            rig.send(1, message(token));
        }
        let mut arriving = Arriving::new();
        rig.arrive(&mut arriving, &[1]);
        // Answered, and not taken up.
        let is_answered = |_: &mut Rig, arriving: &mut Arriving| arriving.answers.questions() == 1;
        let mut idle = Arriving::new();
        let asked = &mut arriving;
        until(&mut rig, &mut idle, "an answer", |rig, _| is_answered(rig, asked)).await;
        rig.depart(&mut arriving, 1);
        rig.commit_as(1, 3, None);
        rig.arrive(&mut arriving, &[1]);
        until(&mut rig, &mut arriving, "it is back", |rig, _| {
            rig.served() == [0, 1]
        })
        .await;
        rig.run_for(A_WHILE).await;
        assert_eq!(script.offsets(), [3]);
    });
}
