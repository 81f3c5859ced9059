//! Listening, and the heads of HTTP/1.1 requests, for servers that misbehave on purpose.
//!
//! On sockets and threads of the standard library: a server that ends answers early, or lies, needs the bytes in its own hand.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::SimError;

/// Bytes of a request's head, at most.
const MOST_HEAD: u64 = 16 * 1024;
/// How long a connection may be idle, and how long a stalled answer is held.
pub(crate) const IDLE: Duration = Duration::from_secs(120);

/// Whether the server shall end.
#[derive(Clone, Default)]
pub(crate) struct Stopped(Arc<AtomicBool>);

impl Stopped {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Waits for so long, or until the server shall end.
    pub(crate) fn hold(&self, time: Duration) {
        let tick = Duration::from_millis(100);
        let mut left = time;
        while !left.is_zero() && !self.is_set() {
            std::thread::sleep(tick.min(left));
            left = left.saturating_sub(tick);
        }
    }
}

/// A socket that is listened on until this is dropped; each connection has a thread.
pub(crate) struct Listener {
    address: SocketAddr,
    stopped: Stopped,
    accepting: Option<JoinHandle<()>>,
}

impl Listener {
    /// Listens at `listen` (port 0: any free one) and has `serve` serve each connection.
    pub(crate) fn start<Serve>(listen: &str, serve: Serve) -> Result<Self, SimError>
    where
        Serve: Fn(&TcpStream, &Stopped) -> std::io::Result<()> + Send + Sync + 'static,
    {
        let listener = TcpListener::bind(listen)?;
        let address = listener.local_addr()?;
        let stopped = Stopped::default();
        let accepting = {
            let stopped = stopped.clone();
            let serve = Arc::new(serve);
            std::thread::spawn(move || {
                for connection in listener.incoming() {
                    if stopped.is_set() {
                        return;
                    }
                    if let Ok(connection) = connection {
                        let (serve, stopped) = (Arc::clone(&serve), stopped.clone());
                        // A client that goes away ends its thread; nobody needs to hear of it.
                        std::thread::spawn(move || {
                            let ready = connection
                                .set_read_timeout(Some(IDLE))
                                .and_then(|()| connection.set_nodelay(true));
                            let _ = ready.and_then(|()| serve(&connection, &stopped));
                        });
                    }
                }
            })
        };
        Ok(Self {
            address,
            stopped,
            accepting: Some(accepting),
        })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the process ends.
    pub(crate) fn wait(mut self) {
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stopped.0.store(true, Ordering::Relaxed);
        // One more connection wakes the thread that accepts them.
        if TcpStream::connect(self.address).is_ok()
            && let Some(accepting) = self.accepting.take()
        {
            let _ = accepting.join();
        }
    }
}

/// The head of a request.
pub(crate) struct Head {
    pub(crate) method: String,
    /// Without the query.
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: HashMap<String, String>,
}

impl Head {
    /// Whether the connection shall end with the answer.
    pub(crate) fn closes(&self) -> bool {
        self.headers
            .get("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

/// What is answered to a head that is none: nothing; the connection ends.
pub(crate) fn malformed() -> std::io::Error {
    ErrorKind::InvalidData.into()
}

/// Reads a request's head; none when the client has closed.
pub(crate) fn read_head(reader: &mut BufReader<&TcpStream>) -> std::io::Result<Option<Head>> {
    let mut bounded = reader.take(MOST_HEAD);
    let mut first = String::new();
    if bounded.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let mut words = first.split_whitespace();
    let method = words.next().ok_or_else(malformed)?.to_owned();
    let target = words.next().ok_or_else(malformed)?;
    let path = target.split('?').next().unwrap_or_default().to_owned();
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        if bounded.read_line(&mut line)? == 0 {
            return Err(malformed());
        }
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(Some(Head {
                method,
                path,
                headers,
            }));
        }
        let (name, value) = line.split_once(':').ok_or_else(malformed)?;
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
}

/// Answers with a status and no bytes.
pub(crate) fn status(writer: &mut impl Write, code: u16, headers: &str) -> std::io::Result<()> {
    write!(
        writer,
        "HTTP/1.1 {code} -\r\nContent-Length: 0\r\n{headers}\r\n"
    )
}
