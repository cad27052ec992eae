//! Readiness and metrics, as far as probes and people ask for them.

use super::run::Shared;
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// Serves for as long as the program runs.
pub(super) fn serve(shared: &Arc<Shared>, address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Whoever asks may be gone before the answer.
            answer(&shared, stream).ok();
        }
    });
    Ok(())
}

fn answer(shared: &Shared, mut stream: TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut lines = BufReader::new(&stream).lines();
    let first = lines.next().context("no request")??;
    // The whole head is read, or the end of the connection would be a reset.
    while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
    let status = shared.status(false);
    let (code, body) = match first.split(' ').nth(1) {
        Some("/healthz/ready") if status.ready => ("200 OK", "ready\n".to_owned()),
        Some("/healthz/ready") => {
            ("500 Internal Server Error", "not ready, pending: workload proxy manager\n".to_owned())
        }
        Some("/metrics") => (
            "200 OK",
            format!(
                "workload_manager_active_proxy_count {}\n\
                 workload_manager_pending_proxy_count {}\n\
                 workload_manager_proxies_started_total {}\n\
                 workload_manager_proxies_stopped_total {}\n",
                status.active(),
                status.pending(),
                status.started,
                status.stopped
            ),
        ),
        _ => ("404 Not Found", String::new()),
    };
    let length = body.len();
    let head = format!("HTTP/1.1 {code}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    Ok(stream.write_all((head + &body).as_bytes())?)
}
