//! Connections with data flowing, for what must not break them.

use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use sys::netns::{Netns, within};

/// How long a connection may take to come about, or to answer.
const LIMIT: Duration = Duration::from_secs(60);

/// A connection to a stand-in, which says who it is and then echoes.
#[derive(Debug)]
pub struct Flow {
    exchanges: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Flow {
    /// Opens one from a network namespace, with an exchange of bytes each `pause`.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn start(from: &Netns, to: SocketAddr, pause: Duration) -> Result<Self> {
        let mut stream = within(from, || TcpStream::connect_timeout(&to, LIMIT))?
            .with_context(|| format!("connect to {to}"))?;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line)?;
        let (exchanges, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, end) = (Arc::clone(&exchanges), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut back = [0; 16];
            while !end.load(Ordering::Relaxed) {
                stream.write_all(&[7; 16]).context("send")?;
                stream.read_exact(&mut back).context("receive")?;
                count.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(pause);
            }
            Ok(())
        });
        Ok(Self { exchanges, stop, thread })
    }

    fn count(&self) -> u64 {
        self.exchanges.load(Ordering::Relaxed)
    }
}

/// Waits until each has come on, or is broken.
///
/// # Errors
/// When one does neither.
pub fn come_on(flows: &[Flow]) -> Result<()> {
    let goals: Vec<u64> = flows.iter().map(|flow| flow.count() + 3).collect();
    let end = Instant::now() + 2 * LIMIT;
    let behind = |(flow, goal): (&Flow, &u64)| !flow.thread.is_finished() && flow.count() < *goal;
    while flows.iter().zip(&goals).any(behind) {
        if Instant::now() > end {
            bail!("connections hang");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Ends them; why those broke that did.
#[must_use]
pub fn finish(flows: Vec<Flow>) -> Vec<String> {
    flows.iter().for_each(|flow| flow.stop.store(true, Ordering::Relaxed));
    let ends = flows.into_iter().map(|flow| flow.thread.join());
    ends.filter_map(|end| match end {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("{error:#}")),
        Err(_) => Some("its thread panicked".to_owned()),
    })
    .collect()
}
