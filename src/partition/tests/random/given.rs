//! What was given back, as the judge of random schedules sees it.

use super::*;

/// Outputs: of attempts that ended well and of no other, each with one id however often it was sent, and none missing whose
/// message was recorded as done by its handler.
impl Campaign {
    /// Whoever did not run to its own end is told so: once where that is in the transaction, with one id where it is sent again.
    pub(super) fn judge_receipts(&self, world: &World) {
        let mut told: BTreeMap<i64, Vec<Headers>> = BTreeMap::new();
        for letter in self.rig.letterbox.letters() {
            let offset = letter.headers.iter().find(|(name, _)| name == "hapax-offset");
            if letter.topic == "receipts" {
                let value = offset.and_then(|(_, value)| value.clone()).unwrap();
                let offset = std::str::from_utf8(&value).unwrap().parse().unwrap();
                told.entry(offset).or_default().push(letter.headers);
            }
        }
        for (offset, all) in &told {
            assert!(
                all.iter().all(|headers| *headers == all[0]),
                "{offset} is told as {all:?}"
            );
            let is_once = all.len() == 1 || self.rig.durability == Durability::Local;
            assert!(is_once, "{offset} is told {} times in transactions", all.len());
        }
        for offset in 0..world.sent.len() as i64 {
            assert!(
                world.ended.contains(&offset) || world.told.contains(&offset) || told.contains_key(&offset),
                "{offset} did not run to its end, and nobody is told"
            );
        }
    }

    pub(super) fn judge_outputs(&self, world: &World) {
        let mut sent: BTreeMap<(i64, String), BTreeSet<String>> = BTreeMap::new();
        for letter in self.rig.letterbox.letters() {
            let of = |name: &str| {
                let found = letter.headers.iter().find(|(n, _)| n == name);
                let value = found.and_then(|(_, value)| value.clone()).unwrap_or_default();
                String::from_utf8(value.to_vec()).unwrap()
            };
            if letter.topic == "outputs" {
                let output = (of("hapax-offset").parse().unwrap(), of("hapax-output"));
                let ids = format!("{} {}", of("hapax-id"), of("idempotency-key"));
                sent.entry(output).or_default().insert(ids);
            }
        }
        for (output, ids) in &sent {
            assert!(
                world.emitted.contains(output),
                "{output:?} of no attempt that ended well"
            );
            assert_eq!(ids.len(), 1, "{output:?} is sent as {ids:?}");
        }
        for offset in (0..world.sent.len() as i64).step_by(2) {
            let closed = self.rig.closed(0, Offset(offset)).unwrap();
            let is_done = closed.is_some_and(|closed| {
                closed.offset == Offset(offset) && closed.attempts > 0 && matches!(closed.end, End::Done(_))
            });
            let is_there = sent.keys().any(|(of, _)| *of == offset);
            assert!(
                !is_done || is_there || world.told.contains(&offset),
                "{offset} is done, and its output is lost"
            );
        }
    }
}
