//! A tiny HTTP server on the loopback interface that serves files by ranges, and badly when asked to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests fail loudly.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// How the server answers a request for a file.
#[derive(Debug, Clone, PartialEq)]
pub enum Manner {
    Well,
    /// Promises all bytes and closes after this many.
    CloseAfter(usize),
    /// Promises and sends this many bytes fewer than the Content-Range says: a clean, early end.
    ShortBy(usize),
    /// Answers with this status; for 503 with `Retry-After: 0`.
    Status(u16),
    /// Answers 429 and asks to be left alone for so many seconds.
    RetryAfter(u64),
    /// Answers with another `ETag` than otherwise.
    OtherTag,
    /// Ignores the range.
    Whole,
    /// Redirects to this address.
    Redirect(String),
    /// Accepts the request and never answers.
    Silence,
    /// Sends half of the bytes, then nothing more.
    Stall,
}

/// What the server does with the next requests for files whose name ends with a suffix.
type Script = Vec<(&'static str, Manner)>;

#[derive(Default)]
struct State {
    files: HashMap<String, Vec<u8>>,
    /// Used up front to back; then the server behaves well.
    script: Mutex<Script>,
    requests: AtomicUsize,
    bytes: AtomicUsize,
    open: AtomicUsize,
    most_open: AtomicUsize,
}

#[derive(Clone)]
pub struct Server {
    state: Arc<State>,
    port: u16,
}

impl Server {
    /// Serves `files`, by path without a leading slash.
    pub async fn start(files: HashMap<String, Vec<u8>>, script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            files,
            script: Mutex::new(script),
            ..State::default()
        });
        let serving = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&serving);
                tokio::spawn(async move {
                    let _ = serve(&state, stream).await;
                });
            }
        });
        Self { state, port }
    }

    pub fn base(&self) -> String {
        format!("http://127.0.0.1:{}/archive", self.port)
    }

    pub fn requests(&self) -> usize {
        self.state.requests.load(Ordering::SeqCst)
    }

    pub fn bytes(&self) -> usize {
        self.state.bytes.load(Ordering::SeqCst)
    }

    /// The most answers that were under way at once.
    pub fn most_open(&self) -> usize {
        self.state.most_open.load(Ordering::SeqCst)
    }
}

impl State {
    fn manner(&self, path: &str) -> Manner {
        let mut script = self.script.lock().unwrap();
        let found = script.iter().position(|(suffix, _)| path.ends_with(suffix));
        found.map_or(Manner::Well, |at| script.remove(at).1)
    }
}

async fn serve(state: &State, stream: TcpStream) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut path = String::new();
        let mut range = None;
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            if path.is_empty() {
                path = line.split(' ').nth(1).unwrap_or_default().to_owned();
            } else if let Some(value) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
                let (from, to) = value.split_once('-').unwrap();
                range = Some((from.parse::<usize>().unwrap(), to.parse::<usize>().unwrap()));
            }
        }
        state.requests.fetch_add(1, Ordering::SeqCst);
        let open = state.open.fetch_add(1, Ordering::SeqCst) + 1;
        state.most_open.fetch_max(open, Ordering::SeqCst);
        let result = answer(state, &mut stream, &path, range).await;
        state.open.fetch_sub(1, Ordering::SeqCst);
        if !result? {
            return stream.shutdown().await;
        }
    }
}

/// Whether the connection stays open.
async fn answer(
    state: &State,
    stream: &mut BufReader<TcpStream>,
    path: &str,
    range: Option<(usize, usize)>,
) -> std::io::Result<bool> {
    let manner = state.manner(path);
    let file = state.files.get(path.trim_start_matches("/archive/"));
    let head = match (&manner, file) {
        (Manner::Silence, _) => {
            tokio::time::sleep(Duration::from_secs(30)).await;
            return Ok(false);
        }
        (Manner::Status(status), _) => {
            format!(
                "HTTP/1.1 {status} Refused\r\nRetry-After: 0\r\nContent-Length: 6\r\n\r\nsecret"
            )
        }
        (Manner::RetryAfter(seconds), _) => {
            format!("HTTP/1.1 429 Refused\r\nRetry-After: {seconds}\r\nContent-Length: 0\r\n\r\n")
        }
        (Manner::Redirect(to), _) => {
            format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n")
        }
        (_, None) => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned(),
        (_, Some(file)) => return send(state, stream, file, range, &manner).await,
    };
    stream.write_all(head.as_bytes()).await?;
    Ok(true)
}

async fn send(
    state: &State,
    stream: &mut BufReader<TcpStream>,
    file: &[u8],
    range: Option<(usize, usize)>,
    manner: &Manner,
) -> std::io::Result<bool> {
    let size = file.len();
    let (from, to) = range
        .filter(|_| *manner != Manner::Whole)
        .unwrap_or((0, size - 1));
    let to = to.min(size - 1);
    let mut body = &file[from..=to];
    let status = if range.is_some() && *manner != Manner::Whole {
        format!("206 Partial Content\r\nContent-Range: bytes {from}-{to}/{size}")
    } else {
        "200 OK".to_owned()
    };
    if let Manner::ShortBy(fewer) = manner {
        body = &body[..body.len().saturating_sub(*fewer)];
    }
    let tag = if *manner == Manner::OtherTag {
        "second"
    } else {
        "first"
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nETag: \"{tag}\"\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    // Long enough for requests that are made at once to be seen at once.
    tokio::time::sleep(Duration::from_millis(5)).await;
    let sent = match manner {
        Manner::CloseAfter(count) => &body[..(*count).min(body.len())],
        Manner::Stall => &body[..body.len() / 2],
        _ => body,
    };
    for part in sent.chunks(16 << 10) {
        stream.write_all(part).await?;
        state.bytes.fetch_add(part.len(), Ordering::SeqCst);
    }
    stream.flush().await?;
    if *manner == Manner::Stall {
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
    Ok(sent.len() == body.len())
}
