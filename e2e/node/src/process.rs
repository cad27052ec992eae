//! Programs that the suite runs: in a namespace, as a user, with input, bounded
//! in time, and killed with the value that stands for them.

use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use sys::netns::{Netns, within};

/// What no program of the suite needs longer for.
const TIMEOUT: Duration = Duration::from_secs(90);

/// Who a program runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Group; there are no others.
    pub gid: u32,
    /// Keeps CAP_NET_ADMIN, which transparent listeners need.
    pub net_admin: bool,
}

impl Identity {
    /// The sidecar proxy's usual user.
    pub const PROXY: Self = Self { uid: 1337, gid: 1337, net_admin: false };
    /// The sidecar proxy in TPROXY mode, as the injector has it (reference 8.9):
    /// root, so that the rules let its connections to the application pass that
    /// bear the client's address, with no capability but CAP_NET_ADMIN.
    pub const TPROXY: Self = Self { uid: 0, gid: 1337, net_admin: true };
    /// An application.
    pub const APP: Self = Self { uid: 1000, gid: 1000, net_admin: false };

    /// The same user with CAP_NET_ADMIN.
    #[must_use]
    pub fn with_net_admin(self) -> Self {
        Self { net_admin: true, ..self }
    }

    /// Options of `setpriv` that make a program this one's.
    #[must_use]
    pub fn options(self) -> Vec<OsString> {
        let mut argv = vec![
            format!("--reuid={}", self.uid),
            format!("--regid={}", self.gid),
            "--clear-groups".to_owned(),
        ];
        if self.uid == 0 {
            let kept = if self.net_admin { ",+net_admin" } else { "" };
            argv.push(format!("--bounding-set=-all{kept}"));
        }
        if self.net_admin {
            argv.push("--inh-caps=+net_admin".to_owned());
            argv.push("--ambient-caps=+net_admin".to_owned());
        }
        argv.push("--".to_owned());
        argv.into_iter().map(OsString::from).collect()
    }
}

/// A program that is about to run.
#[derive(Debug)]
pub struct Program<'a> {
    /// What runs the rest, whoever that is: `nsenter`.
    wrapper: Vec<OsString>,
    argv: Vec<OsString>,
    env: Vec<(String, OsString)>,
    clear_env: bool,
    netns: Option<&'a Netns>,
    input: Vec<u8>,
    timeout: Duration,
}

/// What a program that ended left.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// Its exit status.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Output {
    /// The output when the program succeeded.
    ///
    /// # Errors
    /// When it did not; the message has all it said.
    pub fn success(self) -> Result<String> {
        if self.status.success() {
            return Ok(self.stdout);
        }
        bail!("{self}")
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (out, err) = (self.stdout.trim(), self.stderr.trim());
        write!(f, "`{}` ended with {}", self.command, self.status)?;
        write!(f, "\nstdout: {out}\nstderr: {err}")
    }
}

impl<'a> Program<'a> {
    /// A program by path or by name in PATH.
    pub fn new(program: impl Into<OsString>) -> Self {
        Self {
            wrapper: Vec::new(),
            argv: vec![program.into()],
            env: Vec::new(),
            clear_env: false,
            netns: None,
            input: Vec::new(),
            timeout: TIMEOUT,
        }
    }

    /// Appends an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.argv.push(arg.into());
        self
    }

    /// Appends arguments.
    #[must_use]
    pub fn args<S: Into<OsString>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.argv.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of the environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// Starts with an empty environment.
    #[must_use]
    pub fn clear_env(mut self) -> Self {
        self.clear_env = true;
        self
    }

    /// Runs it in a network namespace.
    #[must_use]
    pub fn within(mut self, netns: &'a Netns) -> Self {
        self.netns = Some(netns);
        self
    }

    /// Runs it in the user namespace of a process, as its root. The network
    /// namespace stays what [`Self::within`] says.
    #[must_use]
    pub fn in_user_namespace_of(mut self, pid: u32) -> Self {
        let words = ["nsenter".to_owned(), format!("--user=/proc/{pid}/ns/user"), "--".to_owned()];
        self.wrapper = words.into_iter().map(OsString::from).collect();
        self
    }

    /// Runs it as somebody else.
    #[must_use]
    pub fn as_user(mut self, identity: Identity) -> Self {
        let mut argv = vec![OsString::from("setpriv")];
        argv.extend(identity.options());
        argv.append(&mut self.argv);
        self.argv = argv;
        self
    }

    /// Gives it standard input.
    #[must_use]
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    /// Allows it less or more time than usual.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The command line as text.
    #[must_use]
    pub fn command_line(&self) -> String {
        let words: Vec<_> = self.argv.iter().map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    }

    /// Runs it to its end, whatever its exit status is.
    ///
    /// # Errors
    /// When it cannot be started or takes too long.
    pub fn run(mut self) -> Result<Output> {
        let input = std::mem::take(&mut self.input);
        let (command, timeout) = (self.command_line(), self.timeout);
        let mut child = KillOnDrop(self.spawn(Stdio::piped())?);
        let stdin = child.0.stdin.take();
        let stdout = read(child.0.stdout.take());
        let stderr = read(child.0.stderr.take());
        let writer = std::thread::spawn(move || {
            // A program that does not read its input may close it: not an error.
            stdin.map(|mut stdin| stdin.write_all(&input));
        });
        let status = wait(&mut child.0, timeout).with_context(|| format!("run `{command}`"))?;
        let finish = |thread: JoinHandle<String>| thread.join().unwrap_or_default();
        writer.join().ok();
        Ok(Output { command, status, stdout: finish(stdout), stderr: finish(stderr) })
    }

    /// Runs it and wants it to succeed.
    ///
    /// # Errors
    /// When it does not.
    pub fn check(self) -> Result<String> {
        self.run()?.success()
    }

    /// Starts it, gives it its input, and leaves it running with stdin open.
    /// Its stderr is the suite's.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mut self) -> Result<Running> {
        let input = std::mem::take(&mut self.input);
        let command = self.command_line();
        let mut child = KillOnDrop(self.spawn(Stdio::inherit())?);
        let mut stdin = child.0.stdin.take();
        if let Some(stdin) = &mut stdin {
            stdin.write_all(&input).with_context(|| format!("write to `{command}`"))?;
        }
        let stdout = child.0.stdout.take().map(BufReader::new);
        Ok(Running { command, child, stdin, stdout })
    }

    fn spawn(&self, stderr: Stdio) -> Result<Child> {
        let mut words = self.wrapper.iter().chain(&self.argv);
        let program = words.next().context("no program named")?;
        #[expect(
            clippy::disallowed_methods,
            reason = "the one place of the end-to-end suite that starts processes"
        )]
        let mut command = Command::new(program);
        if self.clear_env {
            command.env_clear();
        }
        command
            .args(words)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr);
        let child = match self.netns {
            Some(netns) => within(netns, || command.spawn())?,
            None => command.spawn(),
        };
        child.with_context(|| format!("start `{}`", self.command_line()))
    }
}

/// A program that runs until this value is dropped.
#[derive(Debug)]
pub struct Running {
    command: String,
    child: KillOnDrop,
    /// Held open: the suite's own programs end when it is closed.
    stdin: Option<ChildStdin>,
    stdout: Option<BufReader<std::process::ChildStdout>>,
}

impl Running {
    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// Waits for its next line of output; None at the end of it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn line(&mut self) -> Result<Option<String>> {
        let Some(stdout) = &mut self.stdout else {
            return Ok(None);
        };
        let mut line = String::new();
        let read =
            stdout.read_line(&mut line).with_context(|| format!("read from `{}`", self.command))?;
        Ok((read > 0).then(|| line.trim_end().to_owned()))
    }

    /// Waits until it prints `ready`, as the suite's own servers do.
    ///
    /// # Errors
    /// When it says anything else or ends.
    pub fn wait_ready(&mut self) -> Result<()> {
        match self.line()?.as_deref() {
            Some("ready") => Ok(()),
            other => bail!("`{}` is not ready, it said {other:?}", self.command),
        }
    }

    /// Closes its input.
    pub fn close_input(&mut self) {
        self.stdin = None;
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.0.try_wait(), Ok(None))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When that takes longer than `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        wait(&mut self.child.0, timeout).with_context(|| format!("wait for `{}`", self.command))
    }
}

#[derive(Debug)]
struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // Both fail only when it has ended and been waited for.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn wait(child: &mut Child, timeout: Duration) -> Result<ExitStatus> {
    let end = Instant::now() + timeout;
    let mut pause = Duration::from_micros(300);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > end {
            bail!("not finished after {timeout:?}");
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(8));
    }
}

fn read(stream: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before a failure is worth showing.
        stream.map(|mut stream| stream.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Whether a process runs. One that ended and that nobody waited for does not.
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Runs `nft`, `ip` or the like once in a namespace with a script on stdin.
///
/// # Errors
/// When it fails; the message has the script.
pub fn load(netns: &Netns, argv: &[&str], script: &str) -> Result<String> {
    let (program, args) = argv.split_first().context("no program named")?;
    // Its lock is the whole machine's, where other tests run.
    let wait: &[&str] = if program.ends_with("tables-legacy") { &["-w", "60"] } else { &[] };
    Program::new(*program)
        .args(wait.iter().chain(args).copied())
        .within(netns)
        .input(script)
        .check()
        .with_context(|| format!("input was:\n{script}"))
}

/// Writes a value under /proc/sys/net of a namespace.
///
/// # Errors
/// When there is no such knob or it refuses the value.
pub fn sysctl(netns: &Netns, knob: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys/net").join(knob);
    within(netns, || std::fs::write(&path, value))?
        .with_context(|| format!("write {value} to {}", path.display()))
}
