//! Connections that stay open while something happens.

use e2e_node::lab::Namespace;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use sys::netns::within;

/// A connection with data flowing.
pub(crate) struct Flow {
    exchanges: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<(), String>>,
}

impl Flow {
    pub(crate) fn start(from: &Namespace, to: SocketAddr) -> Self {
        let limit = Duration::from_secs(10);
        let stream = within(from.netns(), || TcpStream::connect_timeout(&to, limit));
        let mut stream = stream.unwrap().unwrap();
        stream.set_read_timeout(Some(limit)).unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        let (exchanges, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, end) = (Arc::clone(&exchanges), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut back = [0; 16];
            while !end.load(Ordering::Relaxed) {
                stream.write_all(&[7; 16]).map_err(|error| error.to_string())?;
                stream.read_exact(&mut back).map_err(|error| error.to_string())?;
                count.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        });
        Self { exchanges, stop, thread }
    }

    fn count(&self) -> u64 {
        self.exchanges.load(Ordering::Relaxed)
    }
}

/// Each has come on since.
pub(crate) fn come_on(flows: &[Flow]) {
    let goals: Vec<u64> = flows.iter().map(|flow| flow.count() + 3).collect();
    let end = Instant::now() + Duration::from_secs(20);
    let behind = |(flow, goal): (&Flow, &u64)| !flow.thread.is_finished() && flow.count() < *goal;
    while flows.iter().zip(&goals).any(behind) {
        assert!(Instant::now() < end, "connections hang");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// None broke.
pub(crate) fn finish(flows: Vec<Flow>) {
    flows.iter().for_each(|flow| flow.stop.store(true, Ordering::Relaxed));
    let ends = flows.into_iter().map(|flow| flow.thread.join().unwrap());
    assert_eq!(ends.filter_map(Result::err).collect::<Vec<_>>(), Vec::<String>::new());
}
