//! The six commands. Each returns what is to be printed on stdout.

use std::os::fd::AsFd;
use std::time::Duration;

use wire::cni::{
    Args, Command, Config, Environment, Error, LogLevel, PrevResult, Version, version_reply,
};
use wire::code;
use wire::request::{
    Answer, Decision, Endpoint, Extension, GcRequest, IpConfig, PodRequest, StatusRequest,
};

use crate::absent::Absent;
use crate::agent::{Agent, AskError};
use crate::deadline::Deadline;
use crate::netns::Sandbox;
use crate::report::Report;
use crate::run_dir::RunDir;
use crate::{decision, invocation, netns};

/// DEL is told to the agent for its records alone, so it waits for little.
const DEL_PATIENCE: Duration = Duration::from_millis(200);
/// VERSION reads stdin only to say back its version: a person at a terminal,
/// who writes nothing, is answered at once.
const VERSION_PATIENCE: Duration = Duration::from_millis(100);

/// Runs the command of `CNI_COMMAND`.
pub(crate) fn run(word: &str, deadline: Deadline, report: &mut Report) -> Result<Vec<u8>, Error> {
    let command = Command::parse(word)?;
    match command {
        Command::Version => return Ok(version(deadline)),
        // "DEL never fails" holds for whatever stdin and environment look
        // like: a runtime that gets an error keeps the sandbox and asks again,
        // for ever, and there is nothing that only DEL could undo.
        Command::Del => {
            if let Err(error) = del(deadline, report) {
                report.tolerated(&error);
            }
            return Ok(Vec::new());
        }
        Command::Add | Command::Check | Command::Status | Command::Gc => {}
    }
    let stdin = invocation::stdin(deadline);
    // Missing variables first, as libcni's skeleton has it.
    let environment = Environment::parse(command, invocation::variable)?;
    let stdin = stdin?;
    let config = Config::parse(&stdin)?;
    report.threshold = config.log_level();
    let version = config.check(command)?;
    report.agreed(version);
    let deadline = deadline.with_length(config.timeout());
    let leaving = is_being_removed(&config);
    match command {
        Command::Check | Command::Status | Command::Gc if leaving => {
            report.outcome(LogLevel::Debug, "nothing to do", LEAVING);
            Ok(Vec::new())
        }
        Command::Check => check(&config, &environment, deadline, report),
        Command::Status => status(&config, deadline, report),
        Command::Gc => gc(&config, deadline, report),
        _ => add(&config, version, &environment, deadline, leaving, report),
    }
}

fn version(deadline: Deadline) -> Vec<u8> {
    let stdin = invocation::stdin(deadline.or_after(VERSION_PATIENCE)).unwrap_or_default();
    let config = Config::parse(&stdin).ok();
    version_reply(config.as_ref().and_then(Config::cni_version)).into_bytes()
}

const LEAVING: &str = "the mesh is being taken off this node";

/// The agent's directory says that there is no mesh on this node any more: a
/// runtime may still hold a chain with this plugin in it.
fn is_being_removed(config: &Config<'_>) -> bool {
    RunDir::open(config.run_dir()).is_ok_and(|directory| directory.is_being_removed())
}

fn add(
    config: &Config<'_>,
    version: Version,
    environment: &Environment,
    deadline: Deadline,
    leaving: bool,
    report: &mut Report,
) -> Result<Vec<u8>, Error> {
    // Before anything is decided: a chain whose result is lost breaks a pod
    // outside the mesh as well.
    let prev_result = config.prev_result()?;
    let args = Args::parse(&environment.args)?;
    describe(report, environment, &args);
    if leaving {
        report.outcome(LogLevel::Info, "passed through", LEAVING);
    } else if let Some(why) = decision::without_agent(config, &args) {
        report.outcome(LogLevel::Debug, "passed through", why.reason());
    } else {
        let question = Question::new(config, environment, &args, prev_result)?;
        match question.ask(Endpoint::Add, deadline) {
            Ok(answer) => {
                let msg = match answer.decision {
                    Decision::Sidecar => "captured for its sidecar",
                    Decision::Ambient => "captured for ztunnel",
                    Decision::Skip => "not of the mesh",
                    Decision::Done => return Err(undecided()),
                };
                report.outcome(LogLevel::Info, msg, &answer.reason);
            }
            Err(e) if e.leaves_open() => {
                let why =
                    question.absent.pass(environment, &question.sandbox.netns, e.into_error())?;
                report.outcome(LogLevel::Warn, "passed without the agent", &why);
            }
            Err(e) => return Err(e.into_error()),
        }
    }
    Ok(prev_result.map_or_else(
        || PrevResult::empty(version).into_bytes(),
        |result| result.as_bytes().to_vec(),
    ))
}

/// An answer to ADD that is none. Its own code: the agent talks, but not of
/// what it was asked.
fn undecided() -> Error {
    Error::new(
        code::AGENT_ANSWERED_NONSENSE,
        "the agent answered ADD without a decision",
        "plugin and agent have to be of the same product and release",
    )
}

fn check(
    config: &Config<'_>,
    environment: &Environment,
    deadline: Deadline,
    report: &mut Report,
) -> Result<Vec<u8>, Error> {
    let prev_result = config.prev_result()?;
    let args = Args::parse(&environment.args)?;
    describe(report, environment, &args);
    if let Some(why) = decision::without_agent(config, &args) {
        report.outcome(LogLevel::Debug, "nothing to check", why.reason());
        return Ok(Vec::new());
    }
    let question = Question::new(config, environment, &args, prev_result)?;
    match question.ask(Endpoint::Check, deadline) {
        Ok(answer) => report.outcome(LogLevel::Debug, "as it must be", &answer.reason),
        Err(e) if e.leaves_open() && question.absent.is_outside() => {
            report.outcome(LogLevel::Debug, "nothing to check", "the pod is outside of the mesh");
        }
        Err(e) => return Err(e.into_error()),
    }
    Ok(Vec::new())
}

/// A question to the agent about a pod.
struct Question<'a> {
    config: &'a Config<'a>,
    environment: &'a Environment,
    args: &'a Args,
    ips: Option<Vec<IpConfig>>,
    sandbox: Sandbox,
    /// What becomes of the pod when nobody answers.
    absent: Absent<'a>,
}

impl<'a> Question<'a> {
    fn new(
        config: &'a Config<'a>,
        environment: &'a Environment,
        args: &'a Args,
        prev_result: Option<PrevResult<'_>>,
    ) -> Result<Self, Error> {
        let ips = prev_result.map(|result| result.addresses()).transpose()?;
        let sandbox = netns::open(&environment.netns)?;
        Ok(Self { config, environment, args, ips, sandbox, absent: Absent::new(config, args) })
    }

    fn ask(&self, endpoint: Endpoint, deadline: Deadline) -> Result<Answer, AskError> {
        let agent = Agent::new(self.config, deadline);
        let mut request = pod_request(&agent, self.environment, self.args);
        request.ips.clone_from(&self.ips);
        if let Some(sluice) = &mut request.sluice {
            let hints = self.absent.hints();
            sluice.pod_annotations.clone_from(&hints.annotations);
            sluice.cgroup_path.clone_from(&hints.cgroup_path);
            sluice.host_netns = Some(self.sandbox.host);
        }
        agent
            .ask(endpoint, &request, Some(self.sandbox.netns.as_fd()), &|| self.absent.is_outside())
    }
}

fn pod_request(agent: &Agent, environment: &Environment, args: &Args) -> PodRequest {
    PodRequest {
        netns: environment.netns.clone(),
        pod_name: args.pod_name.clone(),
        pod_namespace: args.pod_namespace.clone(),
        ips: None,
        sluice: Some(Extension {
            container_id: environment.container_id.clone(),
            if_name: environment.if_name.clone(),
            pod_uid: args.pod_uid.clone(),
            ..agent.extension()
        }),
    }
}

fn del(deadline: Deadline, report: &mut Report) -> Result<(), Error> {
    let stdin = invocation::stdin(deadline);
    let environment = Environment::parse(Command::Del, invocation::variable)?;
    let stdin = stdin?;
    let config = Config::parse(&stdin)?;
    report.threshold = config.log_level();
    // Neither its name nor its version matters to what is said to the agent,
    // and a pod whose arguments are broken still has its sandbox's id.
    let args = Args::parse(&environment.args).unwrap_or_default();
    describe(report, &environment, &args);
    let forget = || {
        let run_dir = RunDir::open(config.run_dir()).ok()?;
        run_dir.forget(&environment.container_id, &environment.if_name);
        Some(())
    };
    if is_being_removed(&config) {
        forget();
        report.outcome(LogLevel::Debug, "nothing to do", LEAVING);
        return Ok(());
    }
    let agent = Agent::new(&config, deadline.with_length(config.timeout()).or_after(DEL_PATIENCE));
    let request = pod_request(&agent, &environment, &args);
    match agent.ask(Endpoint::Del, &request, None, &|| false) {
        Ok(answer) => {
            report.outcome(LogLevel::Debug, "the agent forgot the interface", &answer.reason);
            Ok(())
        }
        Err(error) => {
            forget();
            Err(error.into_error())
        }
    }
}

/// A node whose network is not ready starts no pod but those of the host's network, so
/// an absent agent that is none of those would never come: then pods start or wait one
/// by one, as [`Absent`] has it.
fn status(config: &Config<'_>, deadline: Deadline, report: &mut Report) -> Result<Vec<u8>, Error> {
    let agent = Agent::new(config, deadline);
    let request = StatusRequest { sluice: agent.extension() };
    match agent.ask(Endpoint::Status, &request, None, &|| false) {
        Ok(answer) => report.outcome(LogLevel::Debug, "ready", &answer.reason),
        Err(AskError::Unanswered(error))
            if error.code == code::AGENT_UNREACHABLE && !config.agent_is_on_host() =>
        {
            report.tolerated(&error);
        }
        // The runtime knows 50; the cause stays in the text.
        Err(AskError::Unanswered(error)) => {
            return Err(Error { code: code::NOT_AVAILABLE, ..error });
        }
        Err(AskError::Refused(error)) => return Err(error),
    }
    Ok(Vec::new())
}

/// The specification lets GC fail. It does when the agent says so or says
/// nonsense; an agent that is not there is no failure, since the node must not
/// report broken networking for a mesh that is being taken away, and what was
/// to be forgotten is a file a sandbox, which DEL removes without the agent too.
fn gc(config: &Config<'_>, deadline: Deadline, report: &mut Report) -> Result<Vec<u8>, Error> {
    let attachments = config.valid_attachments()?;
    let agent = Agent::new(config, deadline);
    let request = GcRequest { sluice: agent.extension(), attachments };
    match agent.ask(Endpoint::Gc, &request, None, &|| false) {
        Ok(answer) => report.outcome(LogLevel::Info, "cleaned up", &answer.reason),
        Err(AskError::Unanswered(error)) if error.code == code::AGENT_UNREACHABLE => {
            report.tolerated(&error)
        }
        Err(e) => return Err(e.into_error()),
    }
    Ok(Vec::new())
}

fn describe(report: &mut Report, environment: &Environment, args: &Args) {
    args.pod_namespace.clone_into(&mut report.ns);
    args.pod_name.clone_into(&mut report.pod);
    environment.container_id.clone_into(&mut report.container);
    environment.netns.clone_into(&mut report.netns);
}
