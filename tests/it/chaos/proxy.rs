//! A TCP proxy between one member and one broker, which delays, cuts, and swallows.
//!
//! Clients connect to the address that a broker advertises, so each member has a listener of its own at each broker,
//! and that listener advertises the proxy. One proxy is one address; threads copy bytes, and look at what they are told.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::plan::Net;

/// How often a thread that waits looks at what it is told.
const LOOK: Duration = Duration::from_millis(10);

/// What the proxy is told, and its connections.
#[derive(Default)]
struct Shared {
    ended: AtomicBool,
    cut: AtomicBool,
    blackhole: AtomicBool,
    delay_ms: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
}

impl Shared {
    fn close_all(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// See the module. Dropped, it closes everything.
pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Takes connections from now on, and passes them to that port of this machine.
    pub(crate) fn start(to: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let told = Arc::clone(&shared);
        thread::spawn(move || accept(&listener, to, &told));
        Self { address, shared }
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Bad network from now on.
    pub(crate) fn disturb(&self, net: Net) {
        self.heal();
        match net {
            Net::Delay(ms) => self.shared.delay_ms.store(ms, Ordering::SeqCst),
            Net::Blackhole => self.shared.blackhole.store(true, Ordering::SeqCst),
            Net::Cut => {
                self.shared.cut.store(true, Ordering::SeqCst);
                self.shared.close_all();
            }
        }
    }

    /// Good network again. What was swallowed is passed on late, as a network may do.
    pub(crate) fn heal(&self) {
        self.shared.cut.store(false, Ordering::SeqCst);
        self.shared.blackhole.store(false, Ordering::SeqCst);
        self.shared.delay_ms.store(0, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.shared.close_all();
    }
}

fn accept(listener: &TcpListener, to: u16, shared: &Arc<Shared>) {
    while !shared.ended.load(Ordering::SeqCst) {
        let Ok((client, _)) = listener.accept() else {
            thread::sleep(LOOK);
            continue;
        };
        if shared.cut.load(Ordering::SeqCst) {
            continue;
        }
        // Nobody there: the client is closed, as if it had asked the broker itself.
        let Ok(server) = TcpStream::connect(("127.0.0.1", to)) else {
            continue;
        };
        client.set_nonblocking(false).unwrap();
        let (Ok(client2), Ok(server2)) = (client.try_clone(), server.try_clone()) else {
            continue;
        };
        if let (Ok(one), Ok(two)) = (client.try_clone(), server.try_clone()) {
            let mut open = shared.open.lock().unwrap();
            open.retain(|stream| stream.peer_addr().is_ok());
            open.extend([one, two]);
        }
        for (from, to) in [(client, server2), (server, client2)] {
            let shared = Arc::clone(shared);
            thread::spawn(move || copy(from, to, &shared));
        }
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, shared: &Shared) {
    let mut bytes = vec![0; 64 << 10];
    // So that a thread whose proxy is gone comes to its end.
    let _ = from.set_read_timeout(Some(Duration::from_secs(1)));
    let _ = to.set_nodelay(true);
    loop {
        match from.read(&mut bytes) {
            Ok(0) => break,
            Ok(length) => {
                let delay_ms = shared.delay_ms.load(Ordering::SeqCst);
                if delay_ms > 0 {
                    thread::sleep(Duration::from_millis(delay_ms));
                }
                while shared.blackhole.load(Ordering::SeqCst) && !shared.ended.load(Ordering::SeqCst) {
                    thread::sleep(LOOK);
                }
                if to.write_all(&bytes[..length]).is_err() {
                    break;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if shared.ended.load(Ordering::SeqCst) {
                    break;
                }
            }
            Err(_) => break,
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that says everything again.
    fn echo() -> u16 {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    let mut out = stream.try_clone().unwrap();
                    let _ = std::io::copy(&mut &stream, &mut out);
                });
            }
        });
        port
    }

    fn says_again(stream: &mut TcpStream, word: &[u8; 4]) -> std::io::Result<bool> {
        stream.write_all(word)?;
        let mut back = [0; 4];
        stream.read_exact(&mut back)?;
        Ok(back == *word)
    }

    #[test]
    fn it_passes_swallows_and_cuts() {
        let proxy = Proxy::start(echo());
        let connect = || {
            let stream = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            stream
        };
        let mut stream = connect();
        assert!(says_again(&mut stream, b"good").unwrap());

        proxy.disturb(Net::Blackhole);
        assert!(says_again(&mut stream, b"late").is_err(), "nothing comes through");
        proxy.heal();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut back = [0; 4];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"late", "what was swallowed comes late");

        proxy.disturb(Net::Cut);
        assert!(says_again(&mut stream, b"gone").is_err());
        assert!(says_again(&mut connect(), b"gone").is_err(), "no new one either");
        proxy.heal();
        assert!(says_again(&mut connect(), b"back").unwrap());
    }
}
