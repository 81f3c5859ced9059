//! An RPC node of the simulated chain: JSON-RPC 2.0 over HTTP, badly where it is told to.
//!
//! What belongs here: the server and the protocol. What the chain holds is `ledger.rs`, how it is shown `answers.rs`, how an
//! answer is spoiled `faults.rs`.

mod answers;
mod faults;
mod ledger;

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

pub use faults::{RpcFault, RpcFaultKind};

use crate::SimError;
use crate::http::{self, Head, Listener, Stopped};
use answers::RpcError;
use faults::Faults;
use ledger::Ledger;

/// Bytes of a request, at most.
const MOST_BODY: u64 = 1024 * 1024;
/// Calls of a batch, at most.
const MOST_CALLS: usize = 1_000;

struct Shared {
    ledger: Ledger,
    faults: Faults,
    requests: AtomicU64,
    calls: AtomicU64,
}

/// A node that runs until it is dropped. It draws the chain again from the plan beside the archive.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # archive_sim::write(folder.path(), &archive_sim::Plan::of_range(1_292_200, 1_292_549, 350))?;
/// let node = archive_sim::RpcServer::start(folder.path(), "127.0.0.1:0", 1, vec!["missing@9".parse()?])?;
/// println!("http://{}", node.address());
/// # Ok(())
/// # }
/// ```
pub struct RpcServer {
    shared: Arc<Shared>,
    listener: Listener,
}

impl RpcServer {
    /// Serves the chain of the archive in `folder` at `listen` (port 0: any free one). `seed` decides which answers meet the
    /// faults that happen to some of them.
    pub fn start(
        folder: &Path,
        listen: &str,
        seed: u64,
        faults: Vec<RpcFault>,
    ) -> Result<Self, SimError> {
        let shared = Arc::new(Shared {
            ledger: Ledger::open(folder)?,
            faults: Faults { seed, faults },
            requests: AtomicU64::new(0),
            calls: AtomicU64::new(0),
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

    /// HTTP requests so far.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Calls answered so far; a batch has several.
    pub fn calls(&self) -> u64 {
        self.shared.calls.load(Ordering::Relaxed)
    }

    /// Serves until the process ends.
    pub fn wait(self) {
        self.listener.wait();
    }
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
        let number = shared.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let Some(length) = body_length(&head) else {
            // Where the body ends is not known, so nothing more can be read.
            return http::status(&mut writer, 411, "Connection: close\r\n");
        };
        if length > MOST_BODY {
            return http::status(&mut writer, 413, "Connection: close\r\n");
        }
        let mut body = vec![0; length as usize];
        reader.read_exact(&mut body)?;
        match shared.faults.of_request(number) {
            Some(RpcFaultKind::Status(code)) => {
                let later = if matches!(code, 429 | 503) {
                    "Retry-After: 0\r\n"
                } else {
                    ""
                };
                http::status(&mut writer, *code, later)?;
                continue;
            }
            Some(RpcFaultKind::Slow(time)) => stopped.hold(*time),
            Some(RpcFaultKind::Stall) => {
                stopped.hold(http::IDLE);
                return Ok(());
            }
            _ => {}
        }
        if head.method != "POST" {
            http::status(&mut writer, 405, "Allow: POST\r\n")?;
            continue;
        }
        let answer = serde_json::to_vec(&answer(&body, shared))?;
        write!(
            writer,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            answer.len()
        )?;
        writer.write_all(&answer)?;
        if head.closes() {
            return Ok(());
        }
    }
    Ok(())
}

/// How long the body is; none where that cannot be known.
fn body_length(head: &Head) -> Option<u64> {
    match head.headers.get("content-length") {
        Some(length) => length.parse().ok(),
        None if head.headers.contains_key("transfer-encoding") => None,
        None => Some(0),
    }
}

/// Answers a call or a batch of them.
fn answer(body: &[u8], shared: &Shared) -> Value {
    match serde_json::from_slice(body) {
        Err(_) => failure(&Value::Null, &RpcError::new(-32_700, "Parse error")),
        Ok(Value::Array(calls)) if calls.is_empty() || calls.len() > MOST_CALLS => {
            failure(&Value::Null, &RpcError::invalid_request())
        }
        Ok(Value::Array(calls)) => calls.iter().map(|call| answer_call(call, shared)).collect(),
        Ok(call) => answer_call(&call, shared),
    }
}

fn answer_call(call: &Value, shared: &Shared) -> Value {
    shared.calls.fetch_add(1, Ordering::Relaxed);
    let id = &call["id"];
    let (Some("2.0"), Some(method)) = (call["jsonrpc"].as_str(), call["method"].as_str()) else {
        return failure(id, &RpcError::invalid_request());
    };
    let nothing = Vec::new();
    let parameters = call["params"].as_array().unwrap_or(&nothing);
    match answers::of(&shared.ledger, &shared.faults, method, parameters) {
        Ok(result) => json!({"jsonrpc": "2.0", "result": result, "id": id}),
        Err(error) => failure(id, &error),
    }
}

fn failure(id: &Value, error: &RpcError) -> Value {
    json!({"jsonrpc": "2.0", "error": {"code": error.code, "message": error.message}, "id": id})
}
