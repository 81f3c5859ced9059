//! What the service's tests share: where the real data is, an archive that never answers, and a driver of
//! the router.
#![allow(dead_code, clippy::unwrap_used, unreachable_pub)]

use std::path::PathBuf;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::header::{ACCEPT, AUTHORIZATION};
use axum::http::{Method, Request, Response, StatusCode};
use serde_json::Value;
use tower::ServiceExt as _;
use uho_sidecar::{Secret, Service, ServiceOptions, app};

pub const SECRET: &str = "correct horse";
pub const PUMP_AMM: &str = "pAMMBay6oceH9fJKBRHGP5D4bD4sWpmSwMn52FMfXEA";
pub const WHIRLPOOL: &str = "whirLbMiicVdio4qvUfM5KAg6Ct8VwpYzGff3uctyCc";
pub const TOKEN: &str = "TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA";
pub const ARROW: &str = "application/vnd.apache.arrow.stream";
pub const NDJSON: &str = "application/x-ndjson";

/// A path of the shared real data; none, saying so, where it is absent.
pub fn shared(path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("UHO_SHARED_DATA").map_or_else(
        || {
            PathBuf::from(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../../../../shared/data"
            ))
        },
        PathBuf::from,
    );
    let found = root.join(path).canonicalize().ok();
    if found.is_none() {
        eprintln!("skipped: {} is not here", root.join(path).display());
    }
    found
}

/// The base of an archive that accepts connections and never answers.
pub fn silent_archive() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut connections = Vec::new();
        while let Ok((connection, _)) = listener.accept() {
            connections.push(connection);
        }
    });
    format!("http://{address}")
}

pub fn router(base: &str) -> Router {
    let options = ServiceOptions {
        archives: vec![("sim".to_owned(), base.to_owned())],
        secret: Some(Secret::new(SECRET)),
        ..ServiceOptions::default()
    };
    app(Service::open(options).unwrap())
}

pub async fn send(
    router: &Router,
    method: Method,
    path: &str,
    accept: &str,
    body: impl Into<Body>,
) -> Response<Body> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(AUTHORIZATION, format!("Bearer {SECRET}"))
        .header(ACCEPT, accept)
        .body(body.into())
        .unwrap();
    router.clone().oneshot(request).await.unwrap()
}

pub async fn backfill(router: &Router, accept: &str, body: &Value) -> Response<Body> {
    send(router, Method::POST, "/backfill", accept, body.to_string()).await
}

pub async fn bytes(response: Response<Body>) -> Vec<u8> {
    to_bytes(response.into_body(), usize::MAX)
        .await
        .unwrap()
        .to_vec()
}

pub async fn json(response: Response<Body>) -> (StatusCode, Value) {
    let status = response.status();
    (
        status,
        serde_json::from_slice(&bytes(response).await).unwrap(),
    )
}

pub async fn lines(response: Response<Body>) -> Vec<Value> {
    let text = String::from_utf8(bytes(response).await).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}
