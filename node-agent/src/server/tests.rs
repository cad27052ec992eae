//! The server with a service of the tests' own.

use super::*;
use std::io::{Read, Write};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use wire::request::Decision;

const REQUEST: &[u8] = b"POST /cmdadd HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}";

/// Answers what it is told, once it is told.
struct Told {
    limit: Duration,
    answers: Mutex<Receiver<Result<Answer, Failure>>>,
}

impl Service for Told {
    fn caller(&self, _: &[u8]) -> Caller {
        let (namespace, pod, uid) = Default::default();
        Caller { limit: self.limit, namespace, pod, uid }
    }

    fn serve(
        &self,
        _: Endpoint,
        _: &[u8],
        _: Along,
        _: std::time::Instant,
    ) -> Result<Answer, Failure> {
        self.answers.lock().unwrap().recv().unwrap()
    }
}

/// Status and code of what ended.
#[derive(Default)]
struct Heard(Mutex<Vec<(u16, u32)>>);

impl Observer for Heard {
    fn beat(&self) {}

    fn begun(&self) {}

    fn ended(&self, outcome: &Outcome) {
        self.0.lock().unwrap().push((outcome.status, outcome.code));
    }
}

/// What a plugin reads, and what is heard of it, when the service is told the answer
/// before (`early`) or after the plugin has read all of one.
fn ask(limit: Duration, answer: Result<Answer, Failure>, early: bool) -> (String, Vec<(u16, u32)>) {
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (tell, answers) = channel();
    let heard = Arc::new(Heard::default());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = {
        let _runtime = runtime.enter();
        Server::bind(directory.path(), &[]).unwrap()
    };
    let service = Arc::new(Told { limit, answers: Mutex::new(answers) });
    let observer: Arc<dyn Observer> = heard.clone();
    let running = runtime.spawn(server.run(service, observer, async { drop(stopped.await) }));
    let path = directory.path().join(SOCKET_NAME);
    let mut plugin = std::os::unix::net::UnixStream::connect(path).unwrap();
    plugin.write_all(REQUEST).unwrap();
    let mut read = String::new();
    if early {
        tell.send(answer).unwrap();
        plugin.read_to_string(&mut read).unwrap();
    } else {
        plugin.read_to_string(&mut read).unwrap();
        tell.send(answer).unwrap();
    }
    drop(stop);
    runtime.block_on(running).unwrap();
    // Waits for the thread of the service.
    drop(runtime);
    let heard = std::mem::take(&mut *heard.0.lock().unwrap());
    (read, heard)
}

fn skip(reason: String) -> Result<Answer, Failure> {
    Ok(Answer { decision: Decision::Skip, reason })
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn what_is_found_out_is_answered_whole() {
    for length in [0, 10, 600_000] {
        let (read, heard) = ask(LONG, skip("x".repeat(length)), true);
        let (head, body) = read.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
        let answer: Answer = serde_json::from_str(body).unwrap();
        assert_eq!((answer.decision, answer.reason.len()), (Decision::Skip, length));
        assert_eq!(heard, [(200, 0)]);
    }
    let (read, heard) = ask(LONG, Err(Failure::new(code::UNKNOWN_POD, "who", "look")), true);
    assert!(read.contains("\"msg\":\"who\""), "{read}");
    assert_eq!(heard.len(), 1);
    assert_eq!(heard[0].1, code::UNKNOWN_POD);
}

#[test]
fn a_step_that_hangs_is_answered_for_and_not_answered_twice() {
    let (read, heard) = ask(Duration::from_millis(200), skip(String::new()), false);
    assert!(read.contains("did not finish within 200 ms"), "{read}");
    assert_eq!(read.matches("HTTP/1.1").count(), 1, "{read}");
    assert_eq!(heard.len(), 1);
    assert_eq!(heard[0].1, code::AGENT_TIMED_OUT);
}
