//! The span of an attempt: where its log lines belong, and which trace its message came with.
//!
//! `tracing` cannot hang a span below one of another process, so the message's `traceparent` is shown in fields that a
//! collector joins by. The token itself is never in a span: its text may be a customer's, and its key is a digest.

use tracing::Span;
use tracing::field::Empty;

use crate::handler::Call;
use crate::message::Raw;

/// A span of that name about one attempt at one message.
macro_rules! span {
    ($name:literal, $raw:expr, $call:expr) => {
        tracing::info_span!(
            $name,
            topic = $raw.topic(),
            partition = $raw.partition(),
            offset = $raw.offset().0,
            attempt = $call.attempt,
            trace_id = Empty,
            parent_id = Empty,
        )
    };
}

/// The span in which a handler runs. Costs one look at the subscriber where nobody wants it.
pub(crate) fn attempt(raw: &Raw<'_>, call: &Call) -> Span {
    with_parent(span!("hapax.attempt", raw, call), raw)
}

/// The span in which a probe is asked; `attempt` is the one it is asked about.
pub(crate) fn probe(raw: &Raw<'_>, call: &Call) -> Span {
    with_parent(span!("hapax.probe", raw, call), raw)
}

fn with_parent(span: Span, raw: &Raw<'_>) -> Span {
    if !span.is_disabled()
        && let Some((trace_id, parent_id)) = raw.header("traceparent").and_then(parent)
    {
        span.record("trace_id", trace_id);
        span.record("parent_id", parent_id);
    }
    span
}

/// Trace and parent of a W3C `traceparent` (Trace Context, section 3.2): `00-<32 hex>-<16 hex>-<2 hex>`, neither id all
/// zeros. Later versions may append fields.
fn parent(header: &[u8]) -> Option<(&str, &str)> {
    let mut fields = std::str::from_utf8(header).ok()?.split('-');
    let (version, trace_id, parent_id) = (fields.next()?, fields.next()?, fields.next()?);
    fields.next().filter(|flags| is_hex(flags, 2))?;
    let known = is_hex(version, 2) && version != "ff" && is_hex(trace_id, 32) && is_hex(parent_id, 16);
    let not_zero = |id: &str| id.bytes().any(|digit| digit != b'0');
    (known && not_zero(trace_id) && not_zero(parent_id)).then_some((trace_id, parent_id))
}

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len
        && text
            .bytes()
            .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const PARENT: &str = "00f067aa0ba902b7";

    #[test]
    fn trace_and_parent_are_read_from_the_header() {
        let header = format!("00-{TRACE}-{PARENT}-01");
        assert_eq!(parent(header.as_bytes()), Some((TRACE, PARENT)));
        let later = format!("01-{TRACE}-{PARENT}-01-more");
        assert_eq!(parent(later.as_bytes()), Some((TRACE, PARENT)));
    }

    #[test]
    fn what_is_not_a_traceparent_is_left_out() {
        let zeros = "0".repeat(32);
        for header in [
            String::new(),
            format!("00-{TRACE}-{PARENT}"),
            format!("ff-{TRACE}-{PARENT}-01"),
            format!("00-{zeros}-{PARENT}-01"),
            format!("00-{}-{PARENT}-01", TRACE.to_uppercase()),
            format!("00-{TRACE}-{}-01", &PARENT[1..]),
        ] {
            assert_eq!(parent(header.as_bytes()), None, "{header}");
        }
        assert_eq!(parent(b"\xff"), None);
    }
}
