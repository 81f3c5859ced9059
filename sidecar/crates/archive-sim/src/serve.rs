//! Serves a folder over HTTP/1.1 by ranges, as a mirror of the archive does, and badly where it is told to.
//!
//! It answers GET and HEAD, and gives out nothing that lies outside the folder.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use socket2::SockRef;

use crate::SimError;
use crate::faults::{Fault, FaultKind};
use crate::http::{self, Head, Listener, Stopped};

/// Bytes written at once.
const PIECE: usize = 64 * 1024;

struct Shared {
    folder: PathBuf,
    /// Each with how often it happened.
    faults: Vec<(Fault, AtomicU64)>,
    requests: AtomicU64,
    car_requests: AtomicU64,
    index_requests: AtomicU64,
    under_way: AtomicU64,
    most_under_way: AtomicU64,
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
            faults: faults
                .into_iter()
                .map(|fault| (fault, AtomicU64::new(0)))
                .collect(),
            requests: AtomicU64::new(0),
            car_requests: AtomicU64::new(0),
            index_requests: AtomicU64::new(0),
            under_way: AtomicU64::new(0),
            most_under_way: AtomicU64::new(0),
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

    /// The most answers that were under way at once since this was last asked.
    pub fn take_most_under_way(&self) -> u64 {
        self.shared.most_under_way.swap(0, Ordering::Relaxed)
    }

    /// How often each fault happened, in the order they were given in.
    pub fn met(&self) -> Vec<u64> {
        let faults = self.shared.faults.iter();
        faults.map(|(_, met)| met.load(Ordering::Relaxed)).collect()
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
    while !stopped.is_set() {
        let Some(head) = http::read_head(&mut reader)? else {
            return Ok(());
        };
        let request = request_of(&head)?;
        shared.requests.fetch_add(1, Ordering::Relaxed);
        let under_way = shared.under_way.fetch_add(1, Ordering::Relaxed) + 1;
        shared
            .most_under_way
            .fetch_max(under_way, Ordering::Relaxed);
        let answered = answer(connection, &request, shared, stopped);
        shared.under_way.fetch_sub(1, Ordering::Relaxed);
        let goes_on = answered?;
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

/// A fault that happens to a request, at a place of its answer in bytes from the start.
#[derive(Clone, Copy)]
struct Strike {
    kind: FaultKind,
    place: u64,
}

/// Answers a request; returns whether the connection can go on.
fn answer(
    connection: &TcpStream,
    request: &Request,
    shared: &Shared,
    stopped: &Stopped,
) -> std::io::Result<bool> {
    let mut writer = connection;
    let Some(mut file) = open(&shared.folder, &request.path) else {
        return http::status(&mut writer, 404, "").map(|()| true);
    };
    let metadata = file.metadata()?;
    let mut size = metadata.len();
    let parsed = request.range.as_deref().map(|text| parse_range(text, size));
    let range = parsed.flatten().unwrap_or((0, size));
    let strike = strike(request, range.0..range.1, shared);
    let kind = strike.map(|strike| strike.kind);
    if let Some(status) = kind.and_then(refusal) {
        return http::status(&mut writer, status.0, &status.1).map(|()| true);
    }
    if let Some(FaultKind::Cut(bytes)) = kind {
        size = size.saturating_sub(bytes);
    }
    let asked = match (&request.range, kind) {
        (None, _) | (_, Some(FaultKind::Whole)) => None,
        (Some(text), _) => {
            let Some(range) = parse_range(text, size) else {
                let unsatisfied = format!("Content-Range: bytes */{size}\r\n");
                return http::status(&mut writer, 416, &unsatisfied).map(|()| true);
            };
            Some(range)
        }
    };
    let (mut start, mut end) = asked.unwrap_or((0, size));
    // Another range of the same length where there is one, or one byte less.
    let aside = match (start, end < size) {
        (_, true) => 1,
        (0, false) => 0,
        (_, false) => -1,
    };
    match kind {
        Some(FaultKind::Short(bytes)) => end = end.saturating_sub(bytes).max(start),
        Some(FaultKind::OtherRange) => {
            start = start.saturating_add_signed(aside);
            end = end.saturating_add_signed(aside);
        }
        _ => {}
    }
    let length = end - start;
    let promised = match strike {
        Some(Strike {
            kind: FaultKind::ShortLength,
            place,
        }) => place.min(length),
        _ => length,
    };
    let (first_line, content_range) = if asked.is_some() {
        let last = end.saturating_sub(1).max(start);
        let content_range = format!("Content-Range: bytes {start}-{last}/{size}\r\n");
        ("206 Partial Content", content_range)
    } else {
        ("200 OK", String::new())
    };
    let modified = metadata
        .modified()
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
        .map_or(0, |since| since.as_nanos());
    let replaced = if kind == Some(FaultKind::OtherTag) {
        "-replaced"
    } else {
        ""
    };
    let head = format!(
        "HTTP/1.1 {first_line}\r\nContent-Length: {promised}\r\nContent-Type: application/octet-stream\r\n\
         Accept-Ranges: bytes\r\nETag: \"{size:x}-{modified:x}{replaced}\"\r\n{content_range}\r\n"
    );
    writer.write_all(head.as_bytes())?;
    if request.head_only {
        return Ok(true);
    }
    if kind == Some(FaultKind::Shifted) {
        start = start.saturating_add_signed(aside);
    }
    file.seek(SeekFrom::Start(start))?;
    let whole = send(&mut writer, &mut file, promised, strike, (shared, stopped))?;
    if kind == Some(FaultKind::Reset) {
        // A lingering time of 0 makes closing a reset.
        SockRef::from(connection).set_linger(Some(Duration::ZERO))?;
    }
    Ok(whole)
}

/// The status and headers of a fault that is an answer without bytes.
fn refusal(kind: FaultKind) -> Option<(u16, String)> {
    match kind {
        FaultKind::Status(code @ (429 | 503)) => Some((code, "Retry-After: 0\r\n".to_owned())),
        FaultKind::Status(code) => Some((code, String::new())),
        FaultKind::RetryAfter(seconds) => Some((429, format!("Retry-After: {seconds}\r\n"))),
        FaultKind::Busy(_) => Some((429, "Retry-After: 0\r\n".to_owned())),
        FaultKind::Missing => Some((404, String::new())),
        _ => None,
    }
}

/// The fault that happens to a request: only requests for bytes of CAR and slot-ranges files meet any.
fn strike(request: &Request, range: Range<u64>, shared: &Shared) -> Option<Strike> {
    let path = Path::new(&request.path);
    let index = match path.extension()?.to_str()? {
        "car" => false,
        "raw" => true,
        _ => return None,
    };
    if request.head_only {
        return None;
    }
    let requests = if index {
        &shared.index_requests
    } else {
        &shared.car_requests
    };
    let number = requests.fetch_add(1, Ordering::Relaxed) + 1;
    let under_way = shared.under_way.load(Ordering::Relaxed);
    let of_file = shared
        .faults
        .iter()
        .filter(|(fault, _)| fault.index == index);
    of_file
        .filter(|(fault, _)| !matches!(fault.kind, FaultKind::Busy(most) if under_way <= most))
        .find_map(|(fault, met)| {
            let place = fault.place(number, &range, met.load(Ordering::Relaxed))?;
            met.fetch_add(1, Ordering::Relaxed);
            Some(Strike {
                kind: fault.kind,
                place,
            })
        })
}

/// Sends `length` bytes of a file, or fewer if the fault is of that kind; whether all were sent.
fn send(
    writer: &mut impl Write,
    file: &mut File,
    length: u64,
    strike: Option<Strike>,
    (shared, stopped): (&Shared, &Stopped),
) -> std::io::Result<bool> {
    let kind = strike.map(|strike| strike.kind);
    let place = strike.map_or(0, |strike| strike.place);
    let until = match kind {
        Some(FaultKind::CloseAfter(bytes)) => bytes.min(length),
        Some(FaultKind::Stall | FaultKind::Close | FaultKind::Reset) => place.min(length),
        _ => length,
    };
    // A slow answer trickles: ten pieces a second.
    let most = match kind {
        Some(FaultKind::Slow(bytes)) => (bytes / 10).clamp(1, PIECE as u64),
        _ => PIECE as u64,
    };
    let mut piece = vec![0; PIECE];
    let mut sent = 0;
    while sent < until {
        let size = (until - sent).min(most) as usize;
        file.read_exact(&mut piece[..size])?;
        if kind == Some(FaultKind::Flip) && (sent..sent + size as u64).contains(&place) {
            piece[(place - sent) as usize] ^= 1 << (place % 8);
        }
        writer.write_all(&piece[..size])?;
        sent += size as u64;
        shared.bytes.fetch_add(size as u64, Ordering::Relaxed);
        if let Some(FaultKind::Slow(bytes)) = kind {
            std::thread::sleep(Duration::from_micros(size as u64 * 1_000_000 / bytes));
        }
    }
    if kind == Some(FaultKind::Stall) {
        stopped.hold(http::IDLE);
        return Ok(false);
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
