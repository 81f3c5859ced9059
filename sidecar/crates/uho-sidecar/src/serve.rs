//! The service behind a socket: what is accepted for how long, and the signals that end it.

use std::io::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

use crate::api::app;
use crate::learned::SAVED_EVERY;
use crate::service::Service;

/// After a signal the process is gone within this, even when a reader takes nothing any more.
const LAST_WORDS: Duration = Duration::from_secs(4);
/// A connection whose next request's head has not come whole by then is closed, idle ones too.
const HEAD_WITHIN: Duration = Duration::from_secs(15);
/// Header fields a request may have.
const HEADERS_AT_MOST: usize = 64;
/// Bytes that a request's head may have; the least that the HTTP library takes.
const HEAD_BYTES_AT_MOST: usize = 8 << 10;
/// After a connection could not be accepted, for want of file descriptors say, the next is tried this later.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until SIGTERM or SIGINT. Prints one JSON line with the address to standard output once it
/// listens, so that whoever started it on port 0 knows the port.
pub async fn serve(service: Service, listen: &str) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen}"))?;
    let address = listener.local_addr()?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    {
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{}", json!({"listening": address.to_string()}))?;
        stdout.flush()?;
    }
    tracing::info!(%address, "listening");

    let saving = service
        .keeps_learned()
        .then(|| tokio::spawn(save_learned(service.clone())));
    let router = app(service.clone());
    let connections = GracefulShutdown::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => hold(socket, &router, &connections),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    drop(listener);
    tracing::info!(active_jobs = service.active_jobs(), "shutting down");
    service.shut_down();
    if tokio::time::timeout(LAST_WORDS, connections.shutdown())
        .await
        .is_err()
    {
        tracing::warn!("a reader took too long; its stream ends without a last record");
    }
    if let Some(saving) = saving {
        saving.abort();
        tokio::task::spawn_blocking(move || service.save_learned()).await?;
    }
    Ok(())
}

/// Writes what is learned of lookup tables every few minutes.
async fn save_learned(service: Service) {
    loop {
        tokio::time::sleep(SAVED_EVERY).await;
        let service = service.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || service.save_learned()).await {
            tracing::warn!(%error, "writing learned lookup tables ended without a result");
        }
    }
}

/// Answers a connection's requests until it ends.
fn hold(socket: TcpStream, router: &Router, connections: &GracefulShutdown) {
    // A checkpoint is a small write that somebody waits for.
    let _ = socket.set_nodelay(true);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_headers(HEADERS_AT_MOST)
        .max_buf_size(HEAD_BYTES_AT_MOST)
        .serve_connection(
            TokioIo::new(socket),
            TowerToHyperService::new(router.clone()),
        );
    let watched = connections.watch(connection);
    tokio::spawn(async move {
        // Clients leave in the middle of answers; that ends their job, and is nothing to report.
        if let Err(error) = watched.await {
            tracing::debug!(%error, "a connection broke");
        }
    });
}
