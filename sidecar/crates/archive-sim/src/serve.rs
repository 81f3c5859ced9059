//! Serves a folder over HTTP/1.1 by ranges, as a mirror of the archive does, and badly where it is told to.
//!
//! On sockets and threads of the standard library: a server that ends answers early, or lies, needs the bytes in its own hand.
//! It listens where it is told, answers GET and HEAD, and gives out nothing that lies outside the folder.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, UNIX_EPOCH};

use crate::SimError;
use crate::faults::{Fault, FaultKind};

/// Bytes of a request's head, at most.
const MOST_HEAD: u64 = 16 * 1024;
/// Bytes written at once.
const PIECE: usize = 64 * 1024;
/// How long a connection may be idle, and how long a stalled answer is held.
const IDLE: Duration = Duration::from_secs(120);

struct Shared {
    folder: PathBuf,
    faults: Vec<Fault>,
    stopped: AtomicBool,
    requests: AtomicU64,
    car_requests: AtomicU64,
    bytes: AtomicU64,
}

/// A server that runs until it is dropped.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let folder = tempfile::tempdir()?;
/// let server = archive_sim::Server::start(folder.path(), "127.0.0.1:0", vec!["status=503@3".parse()?])?;
/// println!("http://{}", server.address());
/// # Ok(())
/// # }
/// ```
pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `folder` at `listen` (port 0: any free one). The first of `faults` that applies to a request happens to it.
    pub fn start(folder: &Path, listen: &str, faults: Vec<Fault>) -> Result<Self, SimError> {
        let listener = TcpListener::bind(listen)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            folder: folder.canonicalize()?,
            faults,
            stopped: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            car_requests: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        });
        let accepting = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                for connection in listener.incoming() {
                    if shared.stopped.load(Ordering::Relaxed) {
                        return;
                    }
                    if let Ok(connection) = connection {
                        let shared = Arc::clone(&shared);
                        // A client that goes away ends its thread; nobody needs to hear of it.
                        std::thread::spawn(move || {
                            let _ = serve_connection(&connection, &shared);
                        });
                    }
                }
            })
        };
        Ok(Self {
            address,
            shared,
            accepting: Some(accepting),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests answered so far.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Bytes of files sent so far.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// Serves until the process ends.
    pub fn wait(mut self) {
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        // One more connection wakes the thread that accepts them.
        if TcpStream::connect(self.address).is_ok()
            && let Some(accepting) = self.accepting.take()
        {
            let _ = accepting.join();
        }
    }
}

/// What a request asks for.
struct Request {
    head_only: bool,
    path: String,
    range: Option<String>,
    close: bool,
}

fn serve_connection(connection: &TcpStream, shared: &Shared) -> std::io::Result<()> {
    connection.set_read_timeout(Some(IDLE))?;
    connection.set_nodelay(true)?;
    let mut reader = BufReader::new(connection);
    let mut writer = connection;
    while !shared.stopped.load(Ordering::Relaxed) {
        let Some(request) = read_request(&mut reader)? else {
            return Ok(());
        };
        shared.requests.fetch_add(1, Ordering::Relaxed);
        let goes_on = answer(&mut writer, &request, shared)?;
        if !goes_on || request.close {
            return Ok(());
        }
    }
    Ok(())
}

/// Reads a request's head; none when the client has closed.
fn read_request(reader: &mut BufReader<&TcpStream>) -> std::io::Result<Option<Request>> {
    let mut head = reader.take(MOST_HEAD);
    let mut first = String::new();
    if head.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let malformed = || std::io::Error::from(ErrorKind::InvalidData);
    let mut words = first.split_whitespace();
    let method = words.next().ok_or_else(malformed)?;
    let target = words.next().ok_or_else(malformed)?;
    let mut request = Request {
        head_only: match method {
            "GET" => false,
            "HEAD" => true,
            _ => return Err(malformed()),
        },
        path: target.split('?').next().unwrap_or_default().to_owned(),
        range: None,
        close: false,
    };
    loop {
        let mut line = String::new();
        if head.read_line(&mut line)? == 0 {
            return Err(malformed());
        }
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(Some(request));
        }
        let (name, value) = line.split_once(':').ok_or_else(malformed)?;
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = Some(value.trim().to_owned()),
            "connection" => request.close = value.trim().eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
}

/// Answers a request; returns whether the connection can go on.
fn answer(writer: &mut impl Write, request: &Request, shared: &Shared) -> std::io::Result<bool> {
    let Some(mut file) = open(&shared.folder, &request.path) else {
        return status(writer, 404, "");
    };
    let metadata = file.metadata()?;
    let size = metadata.len();
    let fault = fault_of(request, shared);
    if let Some(FaultKind::Status(code)) = fault {
        let later = if matches!(code, 429 | 503) {
            "Retry-After: 0\r\n"
        } else {
            ""
        };
        return status(writer, code, later);
    }
    let asked = match (&request.range, fault) {
        (None, _) | (_, Some(FaultKind::Whole)) => None,
        (Some(text), _) => match parse_range(text, size) {
            Some(range) => Some(range),
            None => return status(writer, 416, &format!("Content-Range: bytes */{size}\r\n")),
        },
    };
    let (start, mut end) = asked.unwrap_or((0, size));
    if let Some(FaultKind::Short(bytes)) = fault {
        end = end.saturating_sub(bytes).max(start);
    }
    let length = end - start;
    let modified = metadata
        .modified()
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
        .map_or(0, |since| since.as_nanos());
    let (first_line, content_range) = if asked.is_some() {
        let last = end.saturating_sub(1).max(start);
        let content_range = format!("Content-Range: bytes {start}-{last}/{size}\r\n");
        ("206 Partial Content", content_range)
    } else {
        ("200 OK", String::new())
    };
    let head = format!(
        "HTTP/1.1 {first_line}\r\nContent-Length: {length}\r\nContent-Type: application/octet-stream\r\n\
         Accept-Ranges: bytes\r\nETag: \"{size:x}-{modified:x}\"\r\n{content_range}\r\n"
    );
    writer.write_all(head.as_bytes())?;
    if request.head_only {
        return Ok(true);
    }
    file.seek(SeekFrom::Start(start))?;
    send(writer, &mut file, length, fault, shared)
}

/// The fault that happens to a request: only requests for bytes of a CAR file meet any.
fn fault_of(request: &Request, shared: &Shared) -> Option<FaultKind> {
    let car = Path::new(&request.path)
        .extension()
        .is_some_and(|extension| extension == "car");
    if request.head_only || !car {
        return None;
    }
    let number = shared.car_requests.fetch_add(1, Ordering::Relaxed) + 1;
    let fault = shared.faults.iter().find(|fault| fault.happens_to(number));
    fault.map(|fault| fault.kind)
}

/// Sends `length` bytes of a file, or fewer if the fault is of that kind.
fn send(
    writer: &mut impl Write,
    file: &mut File,
    length: u64,
    fault: Option<FaultKind>,
    shared: &Shared,
) -> std::io::Result<bool> {
    let until = match fault {
        Some(FaultKind::CloseAfter(bytes)) => bytes.min(length),
        Some(FaultKind::Stall) => length / 2,
        _ => length,
    };
    let mut piece = vec![0; PIECE];
    let mut sent = 0;
    while sent < until {
        let size = (until - sent).min(PIECE as u64) as usize;
        file.read_exact(&mut piece[..size])?;
        let middle = length / 2;
        if fault == Some(FaultKind::Flip) && (sent..sent + size as u64).contains(&middle) {
            piece[(middle - sent) as usize] ^= 1 << (middle % 8);
        }
        writer.write_all(&piece[..size])?;
        sent += size as u64;
        shared.bytes.fetch_add(size as u64, Ordering::Relaxed);
        if let Some(FaultKind::Slow(bytes)) = fault {
            std::thread::sleep(Duration::from_micros(size as u64 * 1_000_000 / bytes));
        }
    }
    if fault == Some(FaultKind::Stall) {
        let tick = Duration::from_millis(100);
        let mut held = Duration::ZERO;
        while held < IDLE && !shared.stopped.load(Ordering::Relaxed) {
            std::thread::sleep(tick);
            held += tick;
        }
    }
    Ok(sent == length)
}

fn status(writer: &mut impl Write, code: u16, headers: &str) -> std::io::Result<bool> {
    write!(
        writer,
        "HTTP/1.1 {code} -\r\nContent-Length: 0\r\n{headers}\r\n"
    )?;
    Ok(true)
}

/// Opens the file of a path, if it is one inside the folder.
fn open(folder: &Path, path: &str) -> Option<File> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let plain = |part: &&str| !part.starts_with('.') && !part.contains(['\\', '%', '\0']);
    if parts.is_empty() || !parts.iter().all(plain) {
        return None;
    }
    let real = folder
        .join(parts.iter().collect::<PathBuf>())
        .canonicalize()
        .ok()?;
    (real.starts_with(folder) && real.is_file())
        .then(|| File::open(real).ok())
        .flatten()
}

/// Reads `bytes=A-B`, `bytes=A-` or `bytes=-N` as half-open; none if it is not satisfiable, or not one range.
fn parse_range(text: &str, size: u64) -> Option<(u64, u64)> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let (start, end) = match (first, last) {
        ("", suffix) => (size.saturating_sub(suffix.parse().ok()?), size),
        (first, "") => (first.parse().ok()?, size),
        (first, last) => (
            first.parse().ok()?,
            last.parse::<u64>().ok()?.checked_add(1)?.min(size),
        ),
    };
    (start < end).then_some((start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_half_open_and_end_with_the_file() {
        assert_eq!(parse_range("bytes=0-9", 100), Some((0, 10)));
        assert_eq!(parse_range("bytes=90-199", 100), Some((90, 100)));
        assert_eq!(parse_range("bytes=90-", 100), Some((90, 100)));
        assert_eq!(parse_range("bytes=-5", 100), Some((95, 100)));
        for wrong in [
            "bytes=100-",
            "bytes=5-4",
            "bytes=1-2,3-4",
            "slots=1-2",
            "bytes=-",
        ] {
            assert_eq!(parse_range(wrong, 100), None, "{wrong}");
        }
    }

    #[test]
    fn nothing_outside_the_folder_is_opened() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("served");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(outer.path().join("secret"), "secret").unwrap();
        std::fs::write(folder.join("open"), "open").unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(outer.path().join("secret"), folder.join("link")).unwrap();
        let folder = folder.canonicalize().unwrap();
        assert!(open(&folder, "/open").is_some());
        for path in ["/../secret", "/link", "/", "/..%2fsecret", "/.hidden"] {
            assert!(open(&folder, path).is_none(), "{path}");
        }
    }
}
