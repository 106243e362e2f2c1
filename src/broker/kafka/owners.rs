//! Owners: which member of the group has a partition, as the group says it. For people: it may be over when it is read.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};

use super::client_config;
use crate::config::Settings;

/// Somebody waits for the answer, and can do without.
const OWNER_MAX: Duration = Duration::from_secs(3);

/// Who has it, in words; `None` where nobody says. Blocks.
pub(crate) fn owner(settings: &Settings, topic: &str, partition: i32) -> Option<String> {
    let consumer: BaseConsumer = client_config(settings).create().ok()?;
    let groups = consumer.fetch_group_list(Some(&settings.group), OWNER_MAX).ok()?;
    let group = groups
        .groups()
        .iter()
        .find(|group| group.name() == settings.group)?;
    let members = group.members().iter();
    let mut owner = members
        .filter(|member| has(member.assignment().unwrap_or_default(), topic, partition))
        .map(|member| {
            format!(
                "member {} (client {} at {})",
                member.id(),
                member.client_id(),
                member.client_host().trim_start_matches('/')
            )
        });
    owner.next()
}

/// Whether an assignment of the classic protocol has the partition: version (2 bytes), then topics, each with its name and its
/// partitions, all counted (4 bytes; names 2), big-endian. KIP-848 assigns in another way, and is not told here.
fn has(assignment: &[u8], topic: &str, partition: i32) -> bool {
    let mut rest = assignment.get(2..).unwrap_or_default();
    let Some(topics) = number(&mut rest) else {
        return false;
    };
    for _ in 0..topics {
        let Some(name) = name(&mut rest) else { return false };
        let Some(partitions) = number(&mut rest) else {
            return false;
        };
        for _ in 0..partitions {
            match number(&mut rest) {
                Some(one) if name == topic.as_bytes() && one == partition => return true,
                Some(_) => {}
                None => return false,
            }
        }
    }
    false
}

fn number(rest: &mut &[u8]) -> Option<i32> {
    let (number, left) = rest.split_first_chunk::<4>()?;
    *rest = left;
    Some(i32::from_be_bytes(*number))
}

fn name<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, left) = rest.split_first_chunk::<2>()?;
    let (name, left) = left.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
    *rest = left;
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assignment_is_read_and_what_is_none_has_nothing() {
        let mut bytes = vec![0, 1, 0, 0, 0, 2];
        for (topic, partitions) in [("orders", &[3i32, 4][..]), ("stock", &[0])] {
            bytes.extend((topic.len() as u16).to_be_bytes());
            bytes.extend(topic.as_bytes());
            bytes.extend((partitions.len() as i32).to_be_bytes());
            bytes.extend(partitions.iter().flat_map(|partition| partition.to_be_bytes()));
        }
        bytes.extend([0xff; 4]);
        assert!(has(&bytes, "orders", 4) && has(&bytes, "stock", 0));
        assert!(!has(&bytes, "orders", 0) && !has(&bytes, "order", 3));
        for end in 0..bytes.len() - 8 {
            assert!(!has(&bytes[..end], "stock", 0), "{end}");
        }
    }
}
