//! What a campaign does, made from its seed: the faults with their moments, and the messages.
//!
//! The same seed is the same plan. What a fault then interrupts depends on the machine as well.

use super::world::Act;

/// Members of the group.
pub(crate) const MEMBERS: usize = 3;
/// How long a member that says nothing keeps its partitions.
pub(crate) const SESSION_MS: u64 = 3_000;
/// What the runtime gives a transaction at least (`Settings::transaction_timeout`).
pub(crate) const TRANSACTION_MS: u64 = 15_000;

/// Where a process kills or freezes itself, and how often it comes there in a second of work, about.
const POINTS: [(&str, u32); 12] = [
    ("before-begin", 20),
    ("after-begin", 20),
    ("inside-handler", 60),
    ("after-handler", 60),
    ("after-record", 20),
    ("before-transaction", 20),
    ("in-transaction", 20),
    ("before-offsets", 20),
    ("before-commit-transaction", 20),
    ("after-transaction", 20),
    ("during-rebalance", 1),
    ("at-shutdown", 1),
];

/// What a proxy does to a member's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Net {
    /// Everything comes so many milliseconds later.
    Delay(u64),
    /// Connections are closed, and none is taken.
    Cut,
    /// Connections stay, and nothing passes.
    Blackhole,
}

/// What is done to a state directory while its process is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disk {
    Delete,
    /// Bytes of some of its files are changed.
    Corrupt(u64),
    /// Some of its files end early.
    Truncate(u64),
}

/// One thing that is done to one member, to a broker, or to all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL, and up again after so many milliseconds.
    Kill { member: usize, down_ms: u64 },
    /// Ended in order, and up again: a member that leaves and joins.
    Leave { member: usize, down_ms: u64 },
    /// Restarted in order; the new process kills itself at the point, the n-th time it comes there.
    KillAt {
        member: usize,
        point: &'static str,
        count: u32,
    },
    /// Restarted in order; the new process stops at the point, and goes on after so many milliseconds.
    FreezeAt {
        member: usize,
        point: &'static str,
        count: u32,
        for_ms: u64,
    },
    /// SIGSTOP, and SIGCONT after so many milliseconds.
    Freeze { member: usize, for_ms: u64 },
    /// Killed, and started with another disk.
    Disk { member: usize, disk: Disk },
    /// A while of bad network.
    Net { member: usize, net: Net, for_ms: u64 },
    /// Every member in turn, in order.
    Rolling,
    /// What the handlers call is away for so many milliseconds, for most of them.
    Flap { for_ms: u64 },
    /// A broker crashes, or ends in order, and comes back.
    Broker { broker: usize, kill: bool, down_ms: u64 },
}

/// A fault and its moment, in milliseconds after the start.
pub(crate) type Planned = (u64, Fault);

/// The faults of so many milliseconds. `brokers` is how many may be restarted, one at a time.
pub(crate) fn faults(seed: u64, length_ms: u64, brokers: usize) -> Vec<Planned> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut planned = Vec::new();
    let mut at = 2_000;
    let mut broker_again = 0;
    while at < length_ms {
        let member = random.usize(0..MEMBERS);
        let down_ms = random.u64(0..4_000);
        match random.u8(0..100) {
            0..16 => planned.push((at, Fault::Kill { member, down_ms })),
            16..32 => {
                let (point, count) = point(&mut random);
                planned.push((at, Fault::KillAt { member, point, count }));
            }
            32..48 => {
                let (point, count) = point(&mut random);
                let for_ms = frozen_ms(&mut random);
                planned.push((
                    at,
                    Fault::FreezeAt {
                        member,
                        point,
                        count,
                        for_ms,
                    },
                ));
                // The second owner dies before the first one wakes (schedules 1 and 3).
                if random.bool() {
                    let member = (member + random.usize(1..MEMBERS)) % MEMBERS;
                    let later = at + SESSION_MS + random.u64(1_000..4_000);
                    planned.push((later, Fault::Kill { member, down_ms }));
                }
            }
            48..60 => {
                let for_ms = frozen_ms(&mut random);
                planned.push((at, Fault::Freeze { member, for_ms }));
            }
            60..72 => planned.push((at, Fault::Leave { member, down_ms })),
            72..80 => planned.push((
                at,
                Fault::Disk {
                    member,
                    disk: disk(&mut random),
                },
            )),
            80..93 => {
                let (net, for_ms) = net(&mut random);
                planned.push((at, Fault::Net { member, net, for_ms }));
            }
            93..96 => planned.push((at, Fault::Rolling)),
            _ if brokers > 0 && at >= broker_again => {
                let fault = Fault::Broker {
                    broker: random.usize(0..brokers),
                    kill: random.bool(),
                    down_ms: random.u64(500..4_000),
                };
                planned.push((at, fault));
                // One at a time, and it takes a while to come back.
                broker_again = at + 30_000;
            }
            _ => planned.push((at, Fault::Kill { member, down_ms })),
        }
        at += random.u64(700..3_500);
    }
    planned.extend(flaps(seed, length_ms));
    planned.sort_by_key(|(at, _)| *at);
    planned
}

/// Long enough for a breaker to open, and to close again before the next one: made apart, so that what else a seed does stays.
fn flaps(seed: u64, length_ms: u64) -> Vec<Planned> {
    let mut random = fastrand::Rng::with_seed(seed ^ 0x666c_6170);
    let mut planned = Vec::new();
    let mut at = random.u64(1_500..5_000);
    while at < length_ms {
        let for_ms = random.u64(1_500..5_000);
        planned.push((at, Fault::Flap { for_ms }));
        at += for_ms + random.u64(4_000..15_000);
    }
    planned
}

fn point(random: &mut fastrand::Rng) -> (&'static str, u32) {
    let (name, often) = POINTS[random.usize(0..POINTS.len())];
    (name, random.u32(1..=2 * often))
}

/// A third each: within a session, past it, past a transaction.
fn frozen_ms(random: &mut fastrand::Rng) -> u64 {
    match random.u8(0..3) {
        0 => random.u64(200..SESSION_MS - 500),
        1 => random.u64(SESSION_MS + 1_000..TRANSACTION_MS - 4_000),
        _ => random.u64(TRANSACTION_MS + 500..TRANSACTION_MS + 4_000),
    }
}

fn disk(random: &mut fastrand::Rng) -> Disk {
    match random.u8(0..4) {
        0 | 1 => Disk::Delete,
        2 => Disk::Corrupt(random.u64(..)),
        _ => Disk::Truncate(random.u64(..)),
    }
}

fn net(random: &mut fastrand::Rng) -> (Net, u64) {
    match random.u8(0..3) {
        0 => (Net::Delay(random.u64(20..400)), random.u64(1_000..8_000)),
        1 => (Net::Cut, random.u64(200..6_000)),
        _ => (Net::Blackhole, random.u64(500..SESSION_MS + 6_000)),
    }
}

/// A message to be sent. Its timestamp is so far behind the moment at which it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) topic: usize,
    pub(crate) partition: i32,
    pub(crate) key: Option<String>,
    pub(crate) token: Option<String>,
    pub(crate) act: Act,
    pub(crate) lag_ms: i64,
}

/// Messages without an end, made from a seed: tokens that are new, or repeated near, within a window, or after it.
pub(crate) struct Messages {
    random: fastrand::Rng,
    seed: u64,
    n: usize,
    topics: usize,
    partitions: i32,
    /// Messages of one window, about.
    window: usize,
    sent: Vec<Message>,
}

impl Messages {
    pub(crate) fn new(seed: u64, topics: usize, partitions: i32, window: usize) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed ^ 0x6d65_7373),
            seed,
            n: 0,
            topics,
            partitions,
            window,
            sent: Vec::new(),
        }
    }
}

impl Iterator for Messages {
    type Item = Message;

    fn next(&mut self) -> Option<Message> {
        let random = &mut self.random;
        self.n += 1;
        let back = match random.u8(0..100) {
            0..10 => Some(random.usize(1..6)),
            10..20 => Some(random.usize(1..self.window)),
            20..28 => Some(random.usize(self.window..3 * self.window)),
            _ => None,
        };
        let lag_ms = match random.u8(0..100) {
            0..80 => 0,
            80..97 => random.i64(0..3_000),
            // Older than a window.
            _ => random.i64(10_000..30_000),
        };
        let earlier = back.and_then(|back| self.sent.len().checked_sub(back));
        let message = match earlier.and_then(|at| self.sent.get(at)) {
            // The producer sends it again: the same in everything but the stamp.
            Some(first) => Message {
                lag_ms,
                ..first.clone()
            },
            None => Message {
                topic: random.usize(0..self.topics),
                partition: random.i32(0..self.partitions),
                key: (random.u8(0..100) >= 15).then(|| format!("k{}", random.u8(0..8))),
                token: (random.u8(0..100) >= 3).then(|| format!("t{}-{}", self.seed, self.n)),
                act: Act::random(random),
                lag_ms,
            },
        };
        self.sent.push(message.clone());
        Some(message)
    }
}

#[test]
fn the_seed_fixes_faults_and_messages() {
    let plan = faults(7, 120_000, 1);
    assert_eq!(plan, faults(7, 120_000, 1));
    assert_ne!(plan, faults(8, 120_000, 1));
    let messages = |seed| Messages::new(seed, 4, 4, 800).take(500).collect::<Vec<_>>();
    assert_eq!(messages(7), messages(7));
    assert_ne!(messages(7), messages(8));
}

#[test]
fn every_kind_of_fault_comes_up_within_some_minutes() {
    let plan: Vec<_> = (0..4).flat_map(|seed| faults(seed, 180_000, 3)).collect();
    let has = |kind: fn(&Fault) -> bool| plan.iter().any(|(_, fault)| kind(fault));
    assert!(has(
        |f| matches!(f, Fault::Freeze { for_ms, .. } if *for_ms < SESSION_MS)
    ));
    assert!(has(
        |f| matches!(f, Fault::Freeze { for_ms, .. } if *for_ms > TRANSACTION_MS)
    ));
    assert!(has(
        |f| matches!(f, Fault::FreezeAt { for_ms, .. } if (SESSION_MS..TRANSACTION_MS).contains(for_ms))
    ));
    assert!(has(|f| matches!(f, Fault::KillAt { .. })) && has(|f| matches!(f, Fault::Leave { .. })));
    assert!(has(|f| matches!(f, Fault::Flap { .. })));
    assert!(has(|f| matches!(f, Fault::Rolling)) && has(|f| matches!(f, Fault::Broker { .. })));
    let nets: [fn(&Net) -> bool; 3] = [
        |net| matches!(net, Net::Delay(_)),
        |net| *net == Net::Cut,
        |net| *net == Net::Blackhole,
    ];
    for is in nets {
        assert!(
            plan.iter()
                .any(|(_, fault)| matches!(fault, Fault::Net { net, .. } if is(net)))
        );
    }
    let disks: [fn(&Disk) -> bool; 3] = [
        |disk| *disk == Disk::Delete,
        |disk| matches!(disk, Disk::Corrupt(_)),
        |disk| matches!(disk, Disk::Truncate(_)),
    ];
    for is in disks {
        assert!(
            plan.iter()
                .any(|(_, fault)| matches!(fault, Fault::Disk { disk, .. } if is(disk)))
        );
    }
}

#[test]
fn every_point_is_one_of_the_runtimes() {
    for (name, _) in POINTS {
        assert!(hapax::crash::POINTS.contains(&name), "{name}");
    }
}
