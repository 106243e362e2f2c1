//! The text of `strace -f -y -xx`, as calls with their order.
//!
//! A line is written when something happens. A call that nothing came between is one line; otherwise its start is a line
//! that ends in `<unfinished ...>`, and its end one that begins with `<... name resumed>`. So the number of a line is a
//! clock: a call started at the line of its start, and had returned at the line of its end.

use std::collections::BTreeMap;

/// What is traced: everything that writes to files or sockets, and what syncs files.
pub(super) const CALLS: &[&str] = &[
    "write",
    "writev",
    "pwrite64",
    "pwritev",
    "pwritev2",
    "sendto",
    "sendmsg",
    "sendmmsg",
    "fsync",
    "fdatasync",
    "sync_file_range",
];

/// One system call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) name: String,
    /// The path of the file, or the name of the socket.
    pub(super) target: String,
    /// What was written, as far as the call says that it was taken.
    pub(super) bytes: Vec<u8>,
    /// When it started and when it had returned.
    pub(super) start: usize,
    pub(super) end: usize,
    succeeded: bool,
}

impl Call {
    /// It makes what was written before it durable. `sync_file_range` does not: it leaves out what the file needs to be
    /// found again.
    pub(super) fn is_sync(&self) -> bool {
        self.succeeded && matches!(self.name.as_str(), "fsync" | "fdatasync")
    }
}

/// Reads a trace.
pub(super) fn parse(text: &str) -> Vec<Call> {
    let mut calls = Vec::new();
    let mut unfinished: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
    for (at, line) in text.lines().enumerate() {
        let Some((thread, rest)) = line.split_once(' ') else {
            continue;
        };
        let rest = rest.trim_start();
        if let Some(head) = rest.strip_suffix("<unfinished ...>") {
            unfinished.insert(thread, (at, head));
        } else if rest.starts_with("<... ") {
            let (start, head) = unfinished
                .remove(thread)
                .unwrap_or_else(|| panic!("line {at}: resumed, and never started: {line:.200}"));
            let tail = rest.split_once("resumed>").map_or("", |(_, tail)| tail);
            calls.extend(call(head, tail, start, at));
        } else if rest.contains('(') && !rest.starts_with("+++") && !rest.starts_with("---") {
            let result = rest.rfind(") ").map_or("", |close| &rest[close..]);
            calls.extend(call(rest, result, at, at));
        }
    }
    calls.sort_by_key(|call| call.start);
    calls
}

/// A call from the text of its start and the text that has its result.
fn call(head: &str, tail: &str, start: usize, end: usize) -> Option<Call> {
    let (name, arguments) = head.split_once('(')?;
    // A call that the end of the process cut off has no result.
    let result = tail.rsplit_once("= ").map(|(_, result)| result);
    let returned: Option<i64> = result.and_then(|result| result.split(' ').next()?.parse().ok());
    let target = arguments.split_once('<')?.1.split_once('>')?.0;
    let mut bytes: Vec<u8> = arguments
        .split('"')
        .skip(1)
        .step_by(2)
        .flat_map(unescape)
        .collect();
    if !name.contains("sync") {
        bytes.truncate(usize::try_from(returned.unwrap_or(0)).unwrap_or(0));
    }
    Some(Call {
        name: name.to_owned(),
        target: String::from_utf8_lossy(&unescape(target)).into_owned(),
        bytes,
        start,
        end,
        succeeded: returned == Some(0),
    })
}

/// `\x41\x42` is `AB`; what is not escaped stays.
fn unescape(text: &str) -> Vec<u8> {
    let mut parts = text.split("\\x");
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (hex, rest) = part.split_at(2);
        bytes.push(u8::from_str_radix(hex, 16).unwrap());
        bytes.extend_from_slice(rest.as_bytes());
    }
    bytes
}

#[test]
fn calls_are_read_with_their_order() {
    let text = "\
7 write(5<\\x2f\\x61>, \"\\x01\\x02\\x03\", 3) = 3
7 fdatasync(5<\\x2f\\x61> <unfinished ...>
8 sendmsg(9<\\x73\\x6f\\x63\\x6b>, {msg_name=NULL, msg_iov=[{iov_base=\"\\x41\", iov_len=1}, {iov_base=\"\\x42\\x43\", iov_len=2}], msg_iovlen=2}, MSG_NOSIGNAL) = 2
7 <... fdatasync resumed>)            = 0
7 fdatasync(5<\\x2f\\x61>) = -1 EIO (Input/output error)
7 +++ exited with 0 +++
";
    let calls = parse(text);
    let seen: Vec<_> = calls
        .iter()
        .map(|call| {
            (
                call.name.as_str(),
                call.target.as_str(),
                call.bytes.as_slice(),
                call.start,
                call.end,
                call.is_sync(),
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("write", "/a", &[1, 2, 3][..], 0, 0, false),
            ("fdatasync", "/a", &[], 1, 3, true),
            ("sendmsg", "sock", b"AB", 2, 2, false),
            ("fdatasync", "/a", &[], 4, 4, false),
        ]
    );
}
