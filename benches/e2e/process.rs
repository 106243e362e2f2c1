//! What the kernel knows of this process: peak memory, and which thread spent how much time.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::Result;

/// Ticks a second in `/proc`, on every Linux.
const TICKS: f64 = 100.0;

/// The peak resident set of this process, in KiB.
pub(crate) fn peak_rss_kib() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    Ok(number.ok_or("the kernel does not say VmHWM")?.parse()?)
}

/// Seconds on a processor, user and system together, by thread name; threads of one name are added up.
pub(crate) fn cpu_by_thread() -> Result<BTreeMap<String, f64>> {
    let mut threads = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/task")? {
        // A thread may end between the listing and the look.
        let Ok(stat) = fs::read_to_string(entry?.path().join("stat")) else {
            continue;
        };
        // The name is in parentheses and may hold spaces; utime and stime are fields 14 and 15 of the line.
        let (head, rest) = stat.rsplit_once(')').ok_or("an unreadable stat")?;
        let name = head.split_once('(').map_or("", |(_, name)| name);
        let mut fields = rest.split_whitespace().skip(11);
        let mut ticks = || -> Result<f64> { Ok(fields.next().ok_or("a short stat")?.parse()?) };
        *threads.entry(name.to_owned()).or_insert(0.0) += (ticks()? + ticks()?) / TICKS;
    }
    threads.retain(|_, seconds| *seconds > 0.0);
    Ok(threads)
}

/// The median time of appending 4 KiB and syncing them, in that folder.
pub(crate) fn sync_time(folder: &Path) -> Result<Duration> {
    let path = folder.join("sync-probe");
    let mut file = File::create(&path)?;
    let mut times = Vec::new();
    for _ in 0..101 {
        file.write_all(&[7; 4096])?;
        let start = Instant::now();
        file.sync_data()?;
        times.push(start.elapsed());
    }
    fs::remove_file(&path)?;
    times.sort_unstable();
    Ok(times.get(times.len() / 2).copied().unwrap_or_default())
}

/// Processors, and the load of the last minute: whether somebody else was at work.
pub(crate) fn machine() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find(|line| line.starts_with("model name"))
        .and_then(|line| line.split_once(':'))
        .map_or("unknown", |(_, model)| model.trim());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = read("/proc/loadavg");
    let load = load.split_whitespace().next().unwrap_or("?");
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{cores} cores ({model}), Linux {}, load {load}", kernel.trim())
}
