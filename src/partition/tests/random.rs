//! Random schedules: both durability modes, every class, rotated tokens, every end of an attempt, kills, drains, revocations,
//! losses, a dead-letter topic that is away, renewed windows, messages that are useless after a while, outputs, and an operator
//! and a probe that know the truth.
//!
//! The handler notes each effect at the moment it happens, so the judge needs nothing that the engine says: of each
//! token at most one effect for a guarded class that is told the truth, no message without an outcome at the end, no attempt at
//! what is useless, nothing useless that was applied, books that balance. A failure prints its seed; `SEED=<n>` runs that one alone, `SEEDS=<n>` that
//! many.

mod given;

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::act::{Act, Said};
use crate::clock::Clock;
use crate::config::{AfterFailure, AfterHold, Durability, OnUseless, Renewal};
use crate::message::Offset;
use crate::outcome::{End, HeldFor, Reason};
use crate::output::Output;

/// Schedules of one run.
const SEEDS: u64 = 150;

/// What really happened.
#[derive(Default)]
struct World {
    random: fastrand::Rng,
    /// Whether every attempt succeeds now.
    calm: bool,
    /// Effects by token key in words, such as `n3` and `o3`.
    effects: BTreeMap<String, u32>,
    /// Offsets of which an attempt emitted an output and ended well, with its name.
    emitted: BTreeSet<(i64, String)>,
    /// Offsets of which an attempt ended well.
    ended: BTreeSet<i64>,
    /// Offsets that somebody else than a handler says are done.
    told: BTreeSet<i64>,
    /// The keys of each offset.
    sent: Vec<Vec<String>>,
    /// What an attempt at each offset has applied.
    applied: BTreeSet<i64>,
    /// When each was sent, and after how long they are useless.
    stamps: Vec<i64>,
    max_age: Option<Duration>,
    clock: Option<Clock>,
    /// What an operator said to run.
    ordered: BTreeSet<i64>,
    /// The message key of each offset.
    keys: Vec<u8>,
    /// Whether a message of a key runs before all later ones of it, across holds and kills too.
    keeps_order: bool,
    is_ordered: bool,
    /// What was called, what of it may have applied something, and what waits for a message of its own token.
    called: BTreeSet<i64>,
    doubted: BTreeSet<i64>,
    resent: BTreeSet<i64>,
    /// What no handler should have seen.
    wrong: Vec<String>,
    log: Vec<String>,
    /// Each line at once: for a schedule that hangs.
    loud: bool,
}

type Shared = Arc<Mutex<World>>;

impl World {
    fn say(&mut self, text: String) {
        if self.loud {
            println!("{text}");
        }
        self.log.push(text);
    }

    fn apply(&mut self, offset: i64) {
        let keys = self.sent[offset as usize].clone();
        self.say(format!("effect of {offset} {keys:?}"));
        self.applied.insert(offset);
        for key in keys {
            *self.effects.entry(key).or_default() += 1;
        }
    }

    /// A message runs before all later ones of its key: not where it waited for a message of its own token, where a person says when,
    /// or where it was in doubt, which releases its key.
    fn in_turn(&mut self, offset: i64) {
        let is_free = |offset: &i64| {
            self.ordered.contains(offset) || self.resent.contains(offset) || self.doubted.contains(offset)
        };
        // One that was held behind its token is judged at the start, before what comes again.
        let is_early = |later: &i64| self.ordered.contains(later) || self.resent.contains(later);
        let key = self.keys[offset as usize];
        if self.keeps_order && !is_free(&offset) {
            let later = self.called.range(offset + 1..);
            let mut later = later.filter(|later| self.is_ordered || self.keys[**later as usize] == key);
            if let Some(later) = later.find(|later| !is_early(later)) {
                self.wrong
                    .push(format!("{offset} was called after {later}, both of key {key}"));
            }
        }
        self.called.insert(offset);
    }

    /// A handler is not called for what is useless: not by more than what a decoder and a begin take.
    fn called(&mut self, offset: i64, call: &Call) {
        let (Some(clock), Some(max_age)) = (&self.clock, self.max_age) else {
            return;
        };
        let age_ms = clock.wall_ms() - self.stamps[offset as usize];
        let late = age_ms > crate::clock::millis(max_age + Duration::from_millis(200));
        if late && !call.may_have_applied && !self.ordered.contains(&offset) {
            self.wrong.push(format!(
                "{offset} was called, {age_ms} ms old, and useless after {max_age:?}"
            ));
        }
    }

    fn emit(&mut self, offset: i64, call: &Call) {
        let name = format!("attempt-{}", call.attempt);
        call.emit(&name, Output::to("outputs")).unwrap();
        self.say(format!("{offset} emits {name}"));
        self.emitted.insert((offset, name));
    }

    fn is_applied(&self, offset: i64) -> bool {
        self.sent[offset as usize]
            .iter()
            .any(|key| self.effects.get(key).is_some_and(|effects| *effects > 0))
    }
}

fn script(world: &Shared) -> Script {
    let of_handler = Arc::clone(world);
    Script::new(move |offset, call| {
        let mut world = of_handler.lock().unwrap();
        world.say(format!("call {offset} attempt {}", call.attempt));
        world.called(offset, &call);
        world.in_turn(offset);
        let pick = if world.calm { 0 } else { world.random.u8(0..12) };
        if matches!(pick, 7..=11) {
            world.doubted.insert(offset);
        }
        match pick {
            0..=4 => {
                world.apply(offset);
                if offset % 2 == 0 {
                    world.emit(offset, &call);
                }
                world.ended.insert(offset);
                ok()
            }
            5 => Box::pin(async { Err(HandlerError::not_applied("busy")) }),
            6 => reject(),
            7 => {
                world.apply(offset);
                call.emit("of a failed attempt", Output::to("outputs")).unwrap();
                who_knows()
            }
            8 => who_knows(),
            9 => {
                if world.random.bool() {
                    world.apply(offset);
                }
                never()
            }
            10 => {
                let time = Duration::from_millis(world.random.u64(1..150));
                let world = Arc::clone(&of_handler);
                Box::pin(async move {
                    wait(time).await;
                    world.lock().unwrap().apply(offset);
                    wait(time).await;
                    let mut world = world.lock().unwrap();
                    if offset % 2 == 0 {
                        world.emit(offset, &call);
                    }
                    world.ended.insert(offset);
                    Ok(())
                })
            }
            // A panic that says nothing on the terminal.
            _ => Box::pin(async { std::panic::resume_unwind(Box::new("a panic of the handler's")) }),
        }
    })
}

struct Campaign {
    rig: Rig,
    world: Shared,
    random: fastrand::Rng,
    tokens: u32,
    /// Partition time runs so much for each message; 0 where it is the wall clock.
    step_ms: i64,
}

impl Campaign {
    fn send(&mut self) {
        let token = self.random.u32(0..self.tokens);
        let (new, old) = match self.random.u8(0..4) {
            0 | 1 => (true, false),
            2 => (false, true),
            _ => (true, true),
        };
        let (new, old) = (new.then(|| format!("n{token}")), old.then(|| format!("o{token}")));
        let is_missing = self.random.u8(0..20) == 0;
        let (new, old) = if is_missing { (None, None) } else { (new, old) };
        let mut message = rotated(new.as_deref(), old.as_deref());
        let key = self.random.u8(0..3);
        message.key = Some(Bytes::from(vec![key]));
        if self.random.u8(0..8) == 0 {
            message.payload = Some(Bytes::from_static(b"decodes slowly"));
        }
        let now_ms = self.rig.clock.wall_ms();
        let stamp_ms = match self.step_ms {
            0 => now_ms,
            step_ms => START_MS + step_ms * self.world.lock().unwrap().sent.len() as i64,
        };
        message.timestamp_ms = Some(stamp_ms);
        let offset = self.rig.send(0, message);
        let position = is_missing.then(|| format!("p{offset}"));
        let keys: Vec<String> = [new, old, position].into_iter().flatten().collect();
        let mut world = self.world.lock().unwrap();
        // Of its number, under either source: they may be one token.
        let number = |key: &String| key[1..].to_owned();
        let is_known =
            |key: &String| !is_missing && world.sent.iter().flatten().map(number).any(|n| n == key[1..]);
        if keys.iter().any(is_known) {
            world.resent.insert(offset);
        }
        world.keys.push(key);
        world.sent.push(keys);
        world.stamps.push(stamp_ms);
        assert_eq!(world.sent.len() as i64, offset + 1);
    }

    fn note(&self, what: &str) {
        self.world.lock().unwrap().say(what.to_owned());
    }

    /// The operator decides everything that is held, and knows what was applied.
    fn resolve_all(&mut self) {
        for offset in open_offsets(&self.rig) {
            let known = self.rig.store.load(self.rig.id(0).unwrap()).unwrap();
            // What is behind its token may be behind a later message, and waits for that one's verdict.
            let is_held = known.open.iter().any(|open| {
                let is_held = matches!(open.stage, Stage::Held { .. }) && !open.is_behind_its_token();
                open.offset.0 == offset && is_held
            });
            if is_held {
                let verdict = self.verdict_on(offset);
                resolve(&mut self.rig, offset, verdict);
                // What follows depends on this one: the next is decided after it.
                return;
            }
        }
    }

    /// What the operator knows of a message that is held.
    fn verdict_on(&mut self, offset: i64) -> Verdict {
        let mut world = self.world.lock().unwrap();
        let verdict = if world.is_applied(offset) {
            Verdict::Done
        } else {
            Verdict::Run
        };
        world.say(format!("verdict {verdict:?} on {offset}"));
        match verdict {
            Verdict::Run => world.ordered.insert(offset),
            _ => world.told.insert(offset),
        };
        verdict
    }

    /// The operator decides about something that is in doubt while the process runs, and does not wait for the answer: whatever
    /// happens next may come in between. What it knows is about so many attempts.
    fn order(&mut self) {
        let id = self.rig.id(0).unwrap();
        let open = self.rig.store.load(id).unwrap().open;
        let in_doubt = open.into_iter().find(|open| {
            let why = match open.stage {
                Stage::Held {
                    why, verdict: None, ..
                } => Some(why),
                _ => None,
            };
            why == Some(HeldFor::InDoubt)
        });
        let Some(open) = in_doubt else { return };
        let act = Act::Resolve {
            offset: open.offset,
            verdict: self.verdict_on(open.offset.0),
            attempts: Some(open.attempts),
        };
        let said = Said {
            reason: "it knows".into(),
            by: "anna".into(),
            at_ms: self.rig.clock.wall_ms(),
        };
        let desk = self.rig.desk.clone();
        tokio::spawn(async move {
            // Refused where it has left its rest since; dropped where its assignment ends first.
            let _ = desk.order(id, vec![act], said, false).await;
        });
    }

    async fn step(&mut self) {
        match self.random.u8(0..17) {
            0..=5 => {
                for _ in 0..self.random.u32(1..6) {
                    self.send();
                }
            }
            6..=9 => {
                let time = Duration::from_millis(self.random.u64(1..400));
                self.rig.run_for(time).await;
            }
            10 | 11 => {
                self.note("crash");
                self.rig.crash();
                self.rig.start().await.unwrap();
            }
            12 => {
                self.note("stop and start");
                self.rig.stop().await;
                if self.random.bool() {
                    self.resolve_all();
                }
                self.rig.start().await.unwrap();
            }
            13 => {
                let budget = Duration::from_millis(self.random.u64(0..400));
                self.note(&format!("revoked within {budget:?}"));
                self.rig.drain(budget, true).await;
                self.rig.assign(0).unwrap();
            }
            14 => {
                self.note("lost");
                self.rig.end(0);
                self.rig.assign(0).unwrap();
            }
            15 => self.order(),
            _ => {
                let refusing = self.random.bool();
                self.note(&format!("letters refused: {refusing}"));
                self.rig.letterbox.refuse(refusing);
            }
        }
        if let Some(failure) = self.rig.failure() {
            panic!("stopped: {}", crate::error::chain(&failure));
        }
        assert_eq!(self.rig.books().remainder(), 0);
    }

    /// Everything is well again: all that is left is decided.
    async fn calm_down(&mut self) {
        self.note("calm");
        self.world.lock().unwrap().calm = true;
        self.rig.letterbox.refuse(false);
        for _ in 0..200 {
            self.rig.run_for(Duration::from_secs(2)).await;
            if let Some(failure) = self.rig.failure() {
                panic!("stopped: {}", crate::error::chain(&failure));
            }
            self.rig.stop().await;
            let sent = self.world.lock().unwrap().sent.len() as i64;
            if open_offsets(&self.rig).is_empty() && self.rig.committed_offset(0) == Some(NextOffset(sent)) {
                return;
            }
            self.resolve_all();
            self.rig.start().await.unwrap();
        }
        panic!(
            "not at rest: open {:?}, committed {:?}",
            open_offsets(&self.rig),
            self.rig.committed_offset(0)
        );
    }

    fn judge(&self, class: Class) {
        let world = self.world.lock().unwrap();
        if class == Class::NonIdempotent {
            for (key, effects) in &world.effects {
                assert!(*effects <= 1, "token {key} had {effects} effects");
            }
        }
        self.judge_outputs(&world);
        if self.rig.policy.receipts.topic.is_some() {
            self.judge_receipts(&world);
        }
        assert_eq!(world.wrong, [""; 0]);
        let letters = self.rig.letterbox.reasons();
        let of_letters = letters.iter().filter(|(_, reason)| reason == "useless");
        let mut useless: BTreeSet<i64> = of_letters.map(|(offset, _)| offset.parse().unwrap()).collect();
        let is_skipped = |offset: &i64| {
            let closed = self.rig.closed(0, Offset(*offset)).unwrap();
            closed.is_some_and(|closed| {
                closed.offset.0 == *offset && closed.end == End::Failed(Reason::Useless)
            })
        };
        useless.extend((0..world.sent.len() as i64).filter(is_skipped));
        if class.is_guarded() {
            let both: Vec<_> = useless.intersection(&world.applied).collect();
            assert_eq!(both, [&0i64; 0], "applied, and given up as useless");
        }
        let letters: BTreeSet<String> = letters
            .into_iter()
            .map(|(offset, _)| offset)
            .chain(useless.iter().map(ToString::to_string))
            .collect();
        let dead: BTreeSet<&String> = world
            .sent
            .iter()
            .enumerate()
            .filter(|(offset, _)| letters.contains(&offset.to_string()))
            .flat_map(|(_, keys)| keys)
            .collect();
        // A message with both keys says that they are one token: an outcome of either reaches the other through it.
        let both: BTreeSet<&String> = world
            .sent
            .iter()
            .filter(|keys| keys.len() == 2)
            .flatten()
            .collect();
        for (offset, keys) in world.sent.iter().enumerate() {
            let other = |key: &String| match key.split_at(1) {
                ("n", number) => format!("o{number}"),
                ("p", _) => key.clone(),
                (_, number) => format!("n{number}"),
            };
            let linked = keys.iter().filter(|key| both.contains(key)).map(other);
            let decided = keys
                .iter()
                .cloned()
                .chain(linked)
                .any(|key| world.effects.contains_key(&key) || dead.contains(&key));
            assert!(decided, "message {offset} {keys:?} was lost");
        }
    }
}

type Headers = Vec<(String, Option<Bytes>)>;

async fn campaign(seed: u64, world: Shared) {
    let mut random = fastrand::Rng::with_seed(seed);
    let class = [
        Class::Idempotent,
        Class::PotentiallyIdempotent,
        Class::NonIdempotent,
        Class::NonIdempotent,
    ][random.usize(0..4)];
    let concurrency = [
        Concurrency::Ordered,
        Concurrency::by_key(3),
        Concurrency::unordered(4),
    ][random.usize(0..3)];
    world.lock().unwrap().random = fastrand::Rng::with_seed(random.u64(..));
    let mut script = script(&world);
    if random.bool() {
        let of_probe = Arc::clone(&world);
        script = script.with_probe(move |offset| {
            let mut world = of_probe.lock().unwrap();
            if world.is_applied(offset) {
                world.told.insert(offset);
                Probe::done(())
            } else {
                Probe::NotDone
            }
        });
    }
    let begun_ahead = random.usize(0..3);
    let after_failure = [AfterFailure::Run, AfterFailure::Suppress][random.usize(0..2)];
    let in_place = random.u32(1..4);
    let overall = random.u32(1..8);
    let after = |random: &mut fastrand::Rng| [AfterHold::BlockKey, AfterHold::Release][random.usize(0..2)];
    let (after_hold, after_doubt) = (after(&mut random), after(&mut random));
    // Small ones that open often, and half of the time none.
    let over = [0, 2, 4, 8][random.usize(0..4)];
    let open_for = Duration::from_millis(random.u64(1..300));
    let retries = [0, 20, 100, 100][random.usize(0..4)];
    let durability = [Durability::Local, Durability::Replicated][random.usize(0..2)];
    let renewal = [Renewal::Never, Renewal::OnDuplicate][random.usize(0..2)];
    // Either time runs by the wall clock, and messages can be useless, or so fast that windows are renewed.
    let max_age = random
        .bool()
        .then(|| Duration::from_millis(random.u64(100..3_000)));
    let then = [OnUseless::DeadLetter, OnUseless::Skip][random.usize(0..2)];
    let is_told = random.bool();
    let mut rig = rig_with(class, &script, |policy| {
        policy.renewal = renewal;
        policy.max_age.after = max_age;
        policy.max_age.then = then;
        policy.receipts.topic = is_told.then(|| "receipts".into());
        policy.retry.in_place.attempts = in_place;
        policy.retry.overall.attempts = overall;
        policy.retry.overall.first = Duration::from_millis(100);
        policy.retry.overall.max = Duration::from_millis(400);
        policy.after_hold = after_hold;
        policy.after_doubt = after_doubt;
        policy.breaker.over = over;
        policy.breaker.open_for = open_for;
        policy.budget.share = Share::percent(retries);
        policy.budget.per_second = 1;
        policy.concurrency = concurrency;
        policy.begun_ahead = begun_ahead;
        policy.window = Duration::from_secs(1_000_000);
        policy.after_failure = after_failure;
    });
    rig.durability = durability;
    rig.max_clock_jump = Duration::from_secs(10_000);
    if random.u8(0..4) == 0 {
        rig.limits.held_age = Duration::from_millis(300);
    }
    if random.u8(0..4) == 0 {
        rig.limits.held = random.usize(1..6);
    }
    rig.limits.in_flight = random.usize(4..64);
    rig.sync = Duration::from_millis([0, 1, 7, 60][random.usize(0..4)]);
    if rig.durability == Durability::Replicated {
        // Its fence is durable before it is served, and here nobody waits for that.
        rig.sync = Duration::ZERO;
    }
    let clock = rig.clock.clone();
    let terms = format!(
        "{durability} {class} {concurrency} renewal {renewal}, useless after {max_age:?}: {then}, begun_ahead {begun_ahead}, after a failure {after_failure:?}, {in_place} attempts in place of {overall}, after a hold {after_hold:?}, after a doubt {after_doubt:?}, a breaker over {over} for {open_for:?}, {retries} % retries, a sync takes {:?}, {:?}",
        rig.sync, rig.limits
    );
    {
        let mut world = world.lock().unwrap();
        (world.max_age, world.clock) = (max_age, Some(clock));
        // A class that is not begun runs the next one before it is durable that the one before has ended.
        world.keeps_order = class.is_guarded()
            && after_hold == AfterHold::BlockKey
            && !matches!(concurrency, Concurrency::Unordered(_));
        // The partition is one key.
        world.is_ordered = concurrency == Concurrency::Ordered;
        world.say(terms);
    }
    let mut campaign = Campaign {
        rig,
        world: Arc::clone(&world),
        tokens: random.u32(2..12),
        // At most 360 messages, in a window of 400.
        step_ms: if max_age.is_some() { 0 } else { 2_500_000 },
        random,
    };
    campaign.send();
    campaign.rig.start().await.unwrap();
    for _ in 0..campaign.random.u32(10..60) {
        campaign.step().await;
    }
    campaign.calm_down().await;
    campaign.judge(class);
}

#[test]
fn nothing_is_lost_and_nothing_guarded_is_done_twice() {
    let one = std::env::var("SEED")
        .ok()
        .map(|seed| seed.parse::<u64>().unwrap());
    let many = std::env::var("SEEDS").map_or(SEEDS, |many| many.parse().unwrap());
    for seed in one.map_or(0..many, |seed| seed..seed + 1) {
        let failed = Failed(seed, Shared::default());
        failed.1.lock().unwrap().loud = one.is_some();
        paused(campaign(seed, Arc::clone(&failed.1)));
        std::mem::forget(failed);
    }
}

/// Says which schedule it was, when its test unwinds.
struct Failed(u64, Shared);

impl Drop for Failed {
    fn drop(&mut self) {
        let world = self.1.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        println!("SEED={}\n{}", self.0, world.log.join("\n"));
    }
}
