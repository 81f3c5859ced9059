//! Serves a folder over HTTP/1.1 by ranges, as a mirror of the archive does, and badly where it is told to.
//!
//! It answers GET and HEAD, and gives out nothing that lies outside the folder.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use crate::SimError;
use crate::faults::{Fault, FaultKind};
use crate::http::{self, Head, Listener, Stopped};

/// Bytes written at once.
const PIECE: usize = 64 * 1024;

struct Shared {
    folder: PathBuf,
    faults: Vec<Fault>,
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
    shared: Arc<Shared>,
    listener: Listener,
}

impl Server {
    /// Serves `folder` at `listen` (port 0: any free one). The first of `faults` that applies to a request happens to it.
    pub fn start(folder: &Path, listen: &str, faults: Vec<Fault>) -> Result<Self, SimError> {
        let shared = Arc::new(Shared {
            folder: folder.canonicalize()?,
            faults,
            requests: AtomicU64::new(0),
            car_requests: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        });
        let served = Arc::clone(&shared);
        let listener = Listener::start(listen, move |connection, stopped| {
            serve_connection(connection, &served, stopped)
        })?;
        Ok(Self { shared, listener })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
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
    pub fn wait(self) {
        self.listener.wait();
    }
}

/// What a request asks for.
struct Request {
    head_only: bool,
    path: String,
    range: Option<String>,
    close: bool,
}

fn serve_connection(
    connection: &TcpStream,
    shared: &Shared,
    stopped: &Stopped,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(connection);
    let mut writer = connection;
    while !stopped.is_set() {
        let Some(head) = http::read_head(&mut reader)? else {
            return Ok(());
        };
        let request = request_of(&head)?;
        shared.requests.fetch_add(1, Ordering::Relaxed);
        let goes_on = answer(&mut writer, &request, shared, stopped)?;
        if !goes_on || request.close {
            return Ok(());
        }
    }
    Ok(())
}

fn request_of(head: &Head) -> std::io::Result<Request> {
    Ok(Request {
        head_only: match head.method.as_str() {
            "GET" => false,
            "HEAD" => true,
            _ => return Err(http::malformed()),
        },
        path: head.path.clone(),
        range: head.headers.get("range").cloned(),
        close: head.closes(),
    })
}

/// Answers a request; returns whether the connection can go on.
fn answer(
    writer: &mut impl Write,
    request: &Request,
    shared: &Shared,
    stopped: &Stopped,
) -> std::io::Result<bool> {
    let Some(mut file) = open(&shared.folder, &request.path) else {
        return http::status(writer, 404, "").map(|()| true);
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
        return http::status(writer, code, later).map(|()| true);
    }
    let asked = match (&request.range, fault) {
        (None, _) | (_, Some(FaultKind::Whole)) => None,
        (Some(text), _) => {
            let Some(range) = parse_range(text, size) else {
                let unsatisfied = format!("Content-Range: bytes */{size}\r\n");
                return http::status(writer, 416, &unsatisfied).map(|()| true);
            };
            Some(range)
        }
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
    send(writer, &mut file, length, fault, (shared, stopped))
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
    (shared, stopped): (&Shared, &Stopped),
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
        stopped.hold(http::IDLE);
    }
    Ok(sent == length)
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
