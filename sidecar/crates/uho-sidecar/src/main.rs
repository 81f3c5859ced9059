//! The binary: arguments, logging, and a runtime that ends when it is told to.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use tracing_subscriber::EnvFilter;
use uho_sidecar::config::{Arguments, Command};
use uho_sidecar::{Service, redact, scan, serve};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    log_to_stderr();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = format!("{error:#}");
            tracing::error!("{}", redact(&text));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let outcome = match arguments.command {
        Command::Serve(arguments) => {
            let listen = arguments.listen.clone();
            let service = runtime.block_on(async {
                Service::open(arguments.options()?).map_err(anyhow::Error::from)
            })?;
            runtime.block_on(serve(service, &listen))
        }
        Command::Scan(arguments) => runtime.block_on(scan(arguments, &mut std::io::stdout())),
    };
    // A worker in the middle of a request to the archive does not hold up the end.
    runtime.shutdown_timeout(Duration::from_millis(500));
    outcome
}

/// One JSON object per line; `UHO_SIDECAR_LOG` chooses levels (`info` unless set).
fn log_to_stderr() {
    let levels =
        EnvFilter::try_from_env("UHO_SIDECAR_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_writer(std::io::stderr)
        .with_env_filter(levels)
        .init();
    // A panic's message may hold data; where it happened is enough to find it.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic
            .location()
            .map(ToString::to_string)
            .unwrap_or_default();
        tracing::error!(place, "a task panicked");
    }));
}
