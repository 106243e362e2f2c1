//! The members of the group: three processes, and what is done to them.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::child::Spec;
use super::cluster::Cluster;
use super::disk;
use super::operator;
use super::plan::{Disk, Fault, MEMBERS};
use super::process::{Ended, Guard, Process};
use super::world;
use crate::checker::Books;
use crate::kafka;

/// An orderly end takes its drain, and a transaction at most.
const END_WITHIN: Duration = Duration::from_secs(60);

/// What is known of one life of one member.
#[derive(Debug, Clone, Default)]
pub(crate) struct Life {
    pub(crate) member: usize,
    pub(crate) killed: bool,
    /// It was frozen, or its network was bad, or a broker was away.
    pub(crate) disturbed: bool,
    /// It could not reach its brokers for a while: it may end by itself. A broken disk is no reason: it is a copy.
    pub(crate) may_fail: bool,
    /// What it says of its own accounts. `None` where it did not end in order.
    pub(crate) books: Option<Vec<Books>>,
    /// Why it ended by itself.
    pub(crate) failed: Option<String>,
}

#[derive(Default)]
struct Slot {
    process: Option<Process>,
    life: u32,
    /// When it is started, where it is down.
    up_at: Option<Instant>,
    /// How long it stays down after its next end.
    down: Duration,
    /// Since when it is asked to end.
    ending: Option<Instant>,
    /// For its next process: the point, and how long it stands still there.
    armed: Option<(String, Option<Duration>)>,
    /// How long the process stands still when it has stopped itself.
    stops_for: Option<Duration>,
    disk: Option<Disk>,
    thaw_at: Option<Instant>,
    heal_at: Option<Instant>,
    /// Its directory was damaged since it was last deleted.
    damaged: bool,
}

/// See the module.
pub(crate) struct Fleet<'a> {
    cluster: &'a Cluster,
    dir: PathBuf,
    run: String,
    /// The one that keeps copies of what the others own.
    stands_by: usize,
    /// A rule of the runtime that is switched off in every process.
    broken: Option<&'static str>,
    slots: [Slot; MEMBERS],
    /// Where operators speak to each.
    ports: [u16; MEMBERS],
    lives: BTreeMap<u32, Life>,
    rolling: VecDeque<usize>,
    restarting: Option<JoinHandle<()>>,
    /// Until when what the handlers call is away.
    flaps_until: Option<Instant>,
    guard: Guard,
    /// Faults that took effect.
    pub(crate) faults: usize,
}

impl<'a> Fleet<'a> {
    pub(crate) fn start(
        cluster: &'a Cluster,
        dir: &Path,
        run: &str,
        seed: u64,
        broken: Option<&'static str>,
    ) -> Self {
        let mut fleet = Self {
            cluster,
            dir: dir.to_owned(),
            run: run.to_owned(),
            stands_by: (seed % MEMBERS as u64) as usize,
            broken,
            slots: Default::default(),
            ports: kafka::free_ports(MEMBERS).try_into().unwrap(),
            lives: BTreeMap::new(),
            rolling: VecDeque::new(),
            restarting: None,
            flaps_until: None,
            guard: Guard::start(dir),
            faults: 0,
        };
        operator::write_token(dir);
        for member in 0..MEMBERS {
            fleet.up(member);
        }
        fleet
    }

    /// Where operators speak to each member, up or not.
    pub(crate) fn ports(&self) -> [SocketAddr; MEMBERS] {
        self.ports.map(|port| SocketAddr::from(([127, 0, 0, 1], port)))
    }

    pub(crate) fn lives(&self) -> &BTreeMap<u32, Life> {
        &self.lives
    }

    fn life(&mut self, member: usize) -> &mut Life {
        self.lives.get_mut(&self.slots[member].life).unwrap()
    }

    fn is_cut_off(&self, member: usize) -> bool {
        self.slots[member].heal_at.is_some() || self.restarting.is_some()
    }

    /// Starts the next life of a member, with what was done to its disk.
    fn up(&mut self, member: usize) {
        let state_dir = self.dir.join(format!("state-{member}"));
        let number = self.lives.len() as u32 + 1;
        let cut_off = self.is_cut_off(member);
        let slot = &mut self.slots[member];
        if let Some(disk) = slot.disk.take() {
            disk::harm(&state_dir, disk);
            slot.damaged = disk != Disk::Delete;
        }
        let life = Life {
            member,
            disturbed: cut_off,
            may_fail: cut_off,
            ..Life::default()
        };
        self.lives.insert(number, life);
        let spec = Spec {
            brokers: self.cluster.bootstrap_of(member),
            run: self.run.clone(),
            life: number,
            state_dir,
            stands_by: member == self.stands_by,
            world: self.dir.join("world"),
            ready: self.dir.join(format!("ready-{number}")),
            port: self.ports[member],
            token_file: operator::token_file(&self.dir),
            books: self.dir.join(format!("books-{number}")),
        };
        let (armed, stops_for) = slot.armed.take().unzip();
        slot.stops_for = stops_for.flatten();
        slot.process = Some(Process::start(
            &self.dir,
            &spec,
            &[("HAPAX_CRASH_AT", armed.as_deref()), ("HAPAX_BREAK", self.broken)],
            &mut self.guard,
        ));
        slot.life = number;
        slot.up_at = None;
        slot.ending = None;
        slot.thaw_at = None;
    }

    /// Does what is planned. What cannot take effect at this moment, because the member is down or frozen, is left out.
    pub(crate) fn suffer(&mut self, fault: Fault) {
        match fault {
            Fault::Kill { member, down_ms } => {
                self.kill(member, down_ms);
            }
            Fault::Leave { member, down_ms } => self.leave(member, down_ms),
            Fault::KillAt { member, point, count } => {
                self.slots[member].armed = Some((format!("{point}:{count}"), None));
                self.leave(member, 0);
            }
            Fault::FreezeAt {
                member,
                point,
                count,
                for_ms,
            } => {
                let stops_for = Some(Duration::from_millis(for_ms));
                self.slots[member].armed = Some((format!("{point}:{count}:stop"), stops_for));
                self.leave(member, 0);
            }
            Fault::Freeze { member, for_ms } => {
                let slot = &mut self.slots[member];
                if let (Some(process), None) = (&slot.process, slot.thaw_at) {
                    process.freeze();
                    slot.thaw_at = Some(Instant::now() + Duration::from_millis(for_ms));
                    self.life(member).disturbed = true;
                    self.faults += 1;
                }
            }
            Fault::Disk { member, disk } => {
                if self.kill(member, 200) {
                    self.slots[member].disk = Some(disk);
                }
            }
            Fault::Net { member, net, for_ms } => {
                self.cluster.disturb(member, net);
                self.slots[member].heal_at = Some(Instant::now() + Duration::from_millis(for_ms));
                self.cut_off(member);
                self.faults += 1;
            }
            Fault::Rolling => {
                if self.rolling.is_empty() {
                    self.rolling = (0..MEMBERS).collect();
                    self.leave(0, 0);
                }
            }
            Fault::Flap { for_ms } => {
                std::fs::write(self.flapping(), "").unwrap();
                self.flaps_until = Some(Instant::now() + Duration::from_millis(for_ms));
                self.faults += 1;
            }
            Fault::Broker {
                broker,
                kill,
                down_ms,
            } => {
                if self.restarting.is_none() {
                    let down = Duration::from_millis(down_ms);
                    self.restarting = Some(self.cluster.restart(broker, kill, down));
                    (0..MEMBERS).for_each(|member| self.cut_off(member));
                    self.faults += 1;
                }
            }
        }
    }

    /// While this is there, handlers find that what they call is away.
    fn flapping(&self) -> PathBuf {
        world::flapping(&self.dir.join("world"))
    }

    fn end_flapping(&mut self) {
        if self.flaps_until.take().is_some() {
            std::fs::remove_file(self.flapping()).unwrap();
        }
    }

    fn kill(&mut self, member: usize, down_ms: u64) -> bool {
        let slot = &mut self.slots[member];
        let Some(process) = &mut slot.process else {
            return false;
        };
        process.kill();
        slot.down = Duration::from_millis(down_ms);
        self.faults += 1;
        true
    }

    fn leave(&mut self, member: usize, down_ms: u64) {
        let slot = &mut self.slots[member];
        if slot.process.is_some() && slot.ending.is_none() {
            slot.ending = Some(Instant::now());
            slot.down = Duration::from_millis(down_ms);
            self.faults += 1;
        }
    }

    fn cut_off(&mut self, member: usize) {
        if self.slots[member].process.is_some() {
            let life = self.life(member);
            life.disturbed = true;
            life.may_fail = true;
        }
    }

    /// Goes on with everything that has a time of its own.
    pub(crate) fn tick(&mut self) {
        if self.restarting.as_ref().is_some_and(JoinHandle::is_finished) {
            self.restarting.take().unwrap().join().unwrap();
        }
        if self.flaps_until.is_some_and(|until| until <= Instant::now()) {
            self.end_flapping();
        }
        for member in 0..MEMBERS {
            let now = Instant::now();
            let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
            if is_due(self.slots[member].heal_at) {
                self.cluster.heal(member);
                self.slots[member].heal_at = None;
            }
            let slot = &mut self.slots[member];
            if let Some(process) = &mut slot.process {
                if let Some(ended) = process.ended() {
                    slot.process = None;
                    slot.up_at = Some(now + std::mem::take(&mut slot.down));
                    self.bury(member, ended);
                    continue;
                }
                if is_due(slot.thaw_at) {
                    process.thaw();
                    slot.thaw_at = None;
                } else if let Some(stops_for) = slot.stops_for.filter(|_| process.is_frozen()) {
                    slot.stops_for = None;
                    slot.thaw_at = Some(now + stops_for);
                    self.faults += 1;
                    self.life(member).disturbed = true;
                    continue;
                }
                match slot.ending {
                    Some(since) if slot.thaw_at.is_none() && now > since + END_WITHIN => {
                        let why = format!("not ended within {END_WITHIN:?}: {}", process.last_words());
                        process.kill();
                        self.life(member).failed = Some(why);
                        // Not asked again meanwhile.
                        self.slots[member].ending = None;
                    }
                    Some(_) => process.terminate(),
                    None => {}
                }
            } else if is_due(slot.up_at) {
                self.up(member);
            }
        }
        self.roll();
    }

    /// The next one in a rolling restart goes down when the last one is up again.
    fn roll(&mut self) {
        let Some(first) = self.rolling.front() else { return };
        let slot = &self.slots[*first];
        let is_up = slot.ending.is_none() && slot.process.as_ref().is_some_and(Process::is_ready);
        if is_up {
            self.rolling.pop_front();
            if let Some(next) = self.rolling.front().copied() {
                self.leave(next, 0);
            }
        }
    }

    fn bury(&mut self, member: usize, ended: Ended) {
        let number = self.slots[member].life;
        let books = self.dir.join(format!("books-{number}"));
        let damaged = self.slots[member].damaged;
        let life = self.life(member);
        match ended {
            Ended::Killed => life.killed = true,
            Ended::InOrder => {
                let text = std::fs::read(&books).unwrap();
                life.books = Some(serde_json::from_slice(&text).unwrap());
            }
            Ended::Badly(why) => {
                life.failed = Some(why);
                // The next one is to go on all the same: what is wrong has been noted.
                if damaged {
                    self.slots[member].disk = Some(Disk::Delete);
                }
                self.slots[member].down = Duration::from_millis(300);
            }
        }
    }

    /// No more faults: good network, everybody up and awake, no broker away.
    pub(crate) fn recover(&mut self) {
        self.rolling.clear();
        self.end_flapping();
        for member in 0..MEMBERS {
            self.cluster.heal(member);
            let slot = &mut self.slots[member];
            slot.heal_at = None;
            slot.armed = None;
            // Whoever is frozen, or yet stops itself, wakes at the next tick.
            slot.thaw_at = slot.thaw_at.map(|_| Instant::now());
            slot.stops_for = slot.stops_for.map(|_| Duration::ZERO);
            slot.down = Duration::ZERO;
        }
        if let Some(restarting) = self.restarting.take() {
            restarting.join().unwrap();
        }
    }

    /// Ends every member in order. False where one does not end in time.
    pub(crate) fn stop(&mut self) -> bool {
        let until = Instant::now() + END_WITHIN + Duration::from_secs(20);
        for slot in &mut self.slots {
            slot.ending.get_or_insert_with(Instant::now);
            slot.down = 10 * END_WITHIN;
            slot.up_at = None;
        }
        while self.slots.iter().any(|slot| slot.process.is_some()) {
            if Instant::now() > until {
                return false;
            }
            self.tick();
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }

    /// How often a breaker has opened, in all lives together: each says so when it does.
    pub(crate) fn breakers_opened(&self) -> usize {
        let logs = self.lives.keys().map(|life| self.dir.join(format!("log-{life}")));
        let said = logs.map(|log| std::fs::read_to_string(log).unwrap_or_default());
        said.map(|said| said.matches("the breaker opens").count()).sum()
    }

    /// What every member said last, for whoever reads a failed test.
    pub(crate) fn last_words(&self) -> String {
        let slots = self.slots.iter().enumerate();
        slots
            .map(|(member, slot)| {
                let words = slot.process.as_ref().map(Process::last_words);
                format!(
                    "member {member}, life {}: {}",
                    slot.life,
                    words.unwrap_or_default()
                )
            })
            .collect::<Vec<_>>()
            .join("\n")
    }
}
