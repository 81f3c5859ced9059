//! The service behind a socket: listening, signals, and an end that leaves no reader guessing.

use std::future::IntoFuture as _;
use std::io::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use axum::serve::ListenerExt as _;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::api::app;
use crate::service::Service;

/// After a signal the process is gone within this, even when a reader takes nothing any more.
const LAST_WORDS: Duration = Duration::from_secs(4);

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

    // A checkpoint is a small write that somebody waits for.
    let listener = listener.tap_io(|socket| {
        let _ = socket.set_nodelay(true);
    });
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = axum::serve(listener, app(service.clone())).with_graceful_shutdown(async {
        let _ = stopped.await;
    });
    let mut server = tokio::spawn(server.into_future());
    tokio::select! {
        ended = &mut server => return Ok(ended??),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!(active_jobs = service.active_jobs(), "shutting down");
    service.shut_down();
    let _ = stop.send(());
    if tokio::time::timeout(LAST_WORDS, server).await.is_err() {
        tracing::warn!("a reader took too long; its stream ends without a last record");
    }
    Ok(())
}
