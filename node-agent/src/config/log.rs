//! Options of logs: ours, and those of Istio's log package (reference 6.1).

use super::policy::ConfigError;
use super::{Entry, Switch, switch};
use crate::log::{Format, Setup, Target};
use clap::Args;

/// Istio's scopes that exist here.
const SCOPES: [&str; 4] = ["default", "all", "cni-agent", "cni-plugin"];

/// What lines are about that this project writes.
const OWN: [&str; 5] = ["sluice", "sys", "redirect", "wire", crate::log::PLUGIN];

/// Options of logs.
#[derive(Debug, Args)]
#[command(next_help_heading = "Logs")]
pub(super) struct LogArgs {
    /// How a log line looks.
    #[arg(long, value_enum, env = "SLUICE_LOG_FORMAT", default_value = "text")]
    log_format: Format,
    /// What is logged: error, warn, info, debug, trace, or a list of target=level [default: info]. Of install-cni it is Istio's, without effect there too (variable LOG_LEVEL).
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// The same, and for install-cni too.
    #[arg(long, value_name = "LEVEL", env = "SLUICE_LOG", hide = true)]
    log_filter: Option<String>,
    /// Istio's form: scope:level,... with the scopes default, all, cni-agent and cni-plugin, and the levels none, error, warn, info and debug.
    #[arg(long = "log_output_level", value_name = "SCOPE:LEVEL,...")]
    pub(super) output_level: Option<String>,
    /// Istio's: the same as --log-format json.
    #[arg(
        long = "log_as_json",
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        default_value = "false",
        value_parser = switch
    )]
    as_json: Switch,
    /// Where lines go: stdout, stderr or a file; may be repeated [default: stdout as install-cni, else stderr].
    #[arg(long = "log_target", value_name = "TARGET", value_delimiter = ',')]
    targets: Vec<String>,
    /// Istio's: these scopes' lines say where in the source they come from.
    #[arg(long = "log_caller", value_name = "SCOPES")]
    caller: Option<String>,
}

/// Levels by Istio's scopes.
#[derive(Debug, PartialEq, Eq)]
struct Levels {
    agent: &'static str,
    plugin: &'static str,
    unknown: Vec<String>,
}

impl LogArgs {
    pub(super) fn switches(&self) -> [(&'static str, &Switch); 1] {
        [("log_as_json", &self.as_json)]
    }

    fn levels(&self) -> Result<Levels, ConfigError> {
        levels(self.output_level.as_deref().unwrap_or_default())
    }

    /// What the plugin is to log.
    pub(super) fn plugin_level(&self) -> Result<&'static str, ConfigError> {
        Ok(self.levels()?.plugin)
    }

    /// Scopes that do not exist, a line each.
    pub(super) fn warnings(&self, entry: Entry) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Ok(levels) = self.levels() {
            let known = SCOPES.join(", ");
            warnings.extend(levels.unknown.iter().map(|scope| {
                format!("--log_output_level: there is no scope {scope:?}, only {known}")
            }));
        }
        if entry == Entry::InstallCni && self.log_level.is_some() {
            warnings.push("--log-level has no effect: use --log_output_level".to_owned());
        }
        warnings
    }

    pub(super) fn setup(&self, entry: Entry) -> Result<Setup, ConfigError> {
        let own = self.log_level.as_ref().filter(|_| entry == Entry::Agent);
        let filter = match (own, &self.output_level, &self.log_filter) {
            (Some(filter), _, _) | (None, None, Some(filter)) => filter.clone(),
            (None, None, None) => "info".to_owned(),
            (None, Some(_), _) => {
                let level = self.levels()?.agent;
                let own = OWN.map(|target| format!("{target}={level}"));
                // Libraries have no scope of Istio's; what they say at debug is not meant.
                let others = if level == "debug" { "info" } else { level };
                format!("{others},{}", own.join(","))
            }
        };
        let default = if entry == Entry::InstallCni { Target::Stdout } else { Target::Stderr };
        let targets = self.targets.iter().filter(|target| !target.is_empty());
        let mut targets: Vec<Target> = targets.map(|target| Target::of(target)).collect();
        if targets.is_empty() {
            targets.push(default);
        }
        let json = self.as_json.is_on() || self.log_format == Format::Json;
        let caller = self.caller.as_deref().unwrap_or_default();
        let agents = |scope: &str| matches!(scope.trim(), "default" | "all" | "cni-agent");
        Ok(Setup {
            format: if json { Format::Json } else { Format::Text },
            filter,
            targets,
            caller: caller.split(',').any(agents),
        })
    }
}

/// Reads `scope:level,...`; a level alone is the default's. The most special wins,
/// and of the same the last.
fn levels(text: &str) -> Result<Levels, ConfigError> {
    let mut found = [None; SCOPES.len()];
    let mut unknown = Vec::new();
    for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let (scope, level) = item.split_once(':').unwrap_or(("default", item));
        let level = match level {
            // Nothing that Istio logs at fatal is less here.
            "none" => "off",
            "fatal" | "error" => "error",
            "warn" => "warn",
            "info" => "info",
            "debug" => "debug",
            other => {
                return Err(ConfigError::Value {
                    option: "--log_output_level",
                    value: other.to_owned(),
                    problem: "want none, error, warn, info or debug".to_owned(),
                });
            }
        };
        match SCOPES.iter().position(|known| *known == scope) {
            Some(at) => found[at] = Some(level),
            None => unknown.push(scope.to_owned()),
        }
    }
    let [default, all, agent, plugin] = found;
    let rest = all.or(default).unwrap_or("info");
    let plugin = match plugin.unwrap_or(rest) {
        "off" => "none",
        level => level,
    };
    Ok(Levels { agent: agent.unwrap_or(rest), plugin, unknown })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_istios_levels() {
        for (text, agent, plugin) in [
            ("", "info", "info"),
            ("debug", "debug", "debug"),
            ("default:info", "info", "info"),
            ("all:debug", "debug", "debug"),
            ("default:warn,cni-agent:debug", "debug", "warn"),
            ("cni-plugin:none,all:error", "error", "none"),
            ("none", "off", "none"),
            ("fatal", "error", "error"),
            ("default:debug,default:warn", "warn", "warn"),
        ] {
            let found = levels(text).unwrap();
            assert_eq!((found.agent, found.plugin), (agent, plugin), "{text}");
        }
        let old = levels("default:info,cni:debug,ambient:debug").unwrap();
        assert_eq!(old.agent, "info");
        assert_eq!(old.unknown, ["cni", "ambient"]);
        assert!(levels("all:loud").unwrap_err().to_string().contains("loud"));
    }
}
