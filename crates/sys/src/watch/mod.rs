//! Hears of changes in other network namespaces, without keeping any of them alive.
//!
//! A socket in a pod's namespace would hear them too, but holds the namespace: its
//! interfaces and addresses would outlive the sandbox. So the sockets are in a namespace
//! of their own, which nobody else is in. The kernel hands them what it notifies in
//! every namespace that has a number there (`NETLINK_LISTEN_ALL_NSID`, Linux 4.2), with
//! that number; giving a number holds nothing, and the kernel says when its namespace
//! died. That is two sockets for any number of pods. It takes CAP_NET_BROADCAST.
//!
//! What is heard: every transaction of nf_tables (so of `iptables-nft` too), policy
//! rules, the routes of our tables, and what happens to `lo` and its addresses. The
//! other tool for iptables, legacy, tells nobody.

mod ears;

#[cfg(test)]
mod tests;

use crate::netlink::{NetlinkError, Protocol, Socket};
use crate::netns::{Netns, NetnsError, NetnsId, within};
use crate::routing;
use ears::{Ears, Sound};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::HashMap;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// RTM_NEWNSID
const NEW_NUMBER: u16 = 88;
/// NETNSA_NSID
pub(super) const NUMBER: u16 = 1;
/// NETNSA_FD
const DESCRIPTOR: u16 = 3;

/// Notifications that come close together are told at once: somebody who flaps costs
/// this many wake-ups a second at most.
const PAUSE: Duration = Duration::from_millis(10);

/// How long the kernel, and a busy machine, may take to notify when it is tried.
const TRIAL: Duration = Duration::from_secs(10);

/// What was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// Something was changed in it.
    Changed(NetnsId),
    /// It is dead: nothing holds it any more.
    Dead(NetnsId),
    /// Notifications were lost: any of them may have been changed.
    Lost,
}

/// Why namespaces cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The kernel or the container's capabilities do not allow it.
    #[error(
        "hear of all namespaces: {}",
        if *source == Errno::EPERM { "want CAP_NET_BROADCAST" } else { "want Linux 4.2" }
    )]
    Refused {
        /// What the kernel said.
        source: Errno,
    },
    /// A socket or a request failed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The namespace of the sockets, or that of the trial, is not to be had.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A pipe or thread is not to be had.
    #[error("start the watch")]
    Start(#[from] io::Error),
    /// A change was made to try it, and not heard.
    #[error("the kernel does not notify of changes in another namespace")]
    Deaf,
}

/// Who is told; false ends that.
type Listener = Box<dyn Fn(Notice) -> bool + Send>;

#[derive(Default)]
struct Shared {
    /// Namespaces by their numbers. A dead one's identity may be used again before its
    /// death is read: then two numbers have it.
    known: HashMap<i32, NetnsId>,
    last: i32,
    listeners: Vec<Listener>,
}

/// Hears of changes for as long as it lives.
pub struct Watch {
    control: Mutex<Socket>,
    shared: Arc<Mutex<Shared>>,
    /// Closed at the end.
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("namespaces", &lock(&self.shared).known.len()).finish()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watch {
    /// Listens, on a thread of its own, and sees by a change in a scratch namespace that
    /// it hears.
    ///
    /// # Errors
    /// Where that does not work.
    pub fn start() -> Result<Self, WatchError> {
        let own = Netns::create()?;
        let (ears, control) =
            within(&own, || Ok::<_, WatchError>((Ears::open()?, Socket::open(Protocol::Route)?)))??;
        let (stopped, stop) = io::pipe()?;
        let shared = Arc::new(Mutex::new(Shared::default()));
        let told = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("watch".to_owned())
            .spawn(move || listen(ears, &stopped, &told))?;
        let control = Mutex::new(control);
        let watch = Self { control, shared, stop: Some(stop), thread: Some(thread) };
        watch.try_out()?;
        Ok(watch)
    }

    fn try_out(&self) -> Result<(), WatchError> {
        let scratch = Netns::create()?;
        let (heard, ear) = sync_channel(1);
        let id = scratch.id();
        // Told until somebody has heard.
        self.follow(move |notice| notice != Notice::Changed(id) || heard.try_send(()).is_err());
        self.add(&scratch)?;
        let changed = within(&scratch, routing::bring_loopback_up)?;
        changed.map_err(|_| WatchError::Deaf)?;
        ear.recv_timeout(TRIAL).map_err(|_| WatchError::Deaf)
    }

    /// Tells `listener` of all that is heard from now on, until it says false. Called on
    /// the watch's thread: it must not take long, nor call the watch.
    pub fn follow(&self, listener: impl Fn(Notice) -> bool + Send + 'static) {
        lock(&self.shared).listeners.push(Box::new(listener));
    }

    /// Watches a namespace too, until it dies. What is changed after this has returned
    /// is heard. One that is watched already does no harm.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add(&self, netns: &Netns) -> Result<(), WatchError> {
        let mut control = lock(&self.control);
        // Known before the kernel has it, which may notify at once.
        let number = {
            let mut shared = lock(&self.shared);
            shared.last = shared.last.wrapping_add(1).max(1);
            let number = shared.last;
            shared.known.insert(number, netns.id());
            number
        };
        let descriptor = netns.as_fd().as_raw_fd();
        let object = || format!("give netns {} a number", netns.id());
        let given = control.request(object, NEW_NUMBER, 0, |buffer| {
            // struct rtgenmsg, padded.
            buffer.raw(&[0; 4]);
            buffer.attribute(NUMBER, &number.to_ne_bytes());
            buffer.attribute(DESCRIPTOR, &descriptor.to_ne_bytes());
        });
        if let Err(error) = given {
            lock(&self.shared).known.remove(&number);
            // It has one, which this watch gave it: nobody else can.
            if error.errno() != Some(Errno::EEXIST) {
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Namespaces that are watched.
    #[must_use]
    pub fn count(&self) -> usize {
        lock(&self.shared).known.len()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It panicked, and has ended.
            let _ = thread.join();
        }
    }
}

fn listen(mut ears: Ears, stopped: &PipeReader, shared: &Mutex<Shared>) {
    loop {
        let [rules, routes] = ears.sockets();
        let flags = PollFlags::POLLIN;
        let mut ready = [rules, routes, stopped.as_fd()].map(|fd| PollFd::new(fd, flags));
        match poll(&mut ready, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
        if ready[2].any().unwrap_or(true) {
            return;
        }
        let sounds = ears.hear();
        if !sounds.is_empty() {
            tell(shared, &sounds);
        }
        std::thread::sleep(PAUSE);
    }
}

fn tell(shared: &Mutex<Shared>, sounds: &[Sound]) {
    let mut shared = lock(shared);
    let mut notices = Vec::with_capacity(sounds.len());
    for sound in sounds {
        match sound {
            Sound::Change(number) => {
                notices.extend(shared.known.get(number).copied().map(Notice::Changed));
            }
            Sound::Death(number) => {
                let Some(dead) = shared.known.remove(number) else { continue };
                if !shared.known.values().any(|id| *id == dead) {
                    notices.push(Notice::Dead(dead));
                }
            }
            Sound::Lost => {
                notices.push(Notice::Lost);
            }
        }
    }
    shared.listeners.retain(|listener| notices.iter().all(|notice| listener(*notice)));
}
