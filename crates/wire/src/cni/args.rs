//! `CNI_ARGS`: what the runtime says about the pod.

use super::Error;
use crate::code;

/// The keys that Istio's plugin knows. Empty where the runtime says nothing:
/// `ctr` gives no arguments at all, podman a name without a namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Args {
    /// `K8S_POD_NAME`.
    pub pod_name: String,
    /// `K8S_POD_NAMESPACE`.
    pub pod_namespace: String,
    /// `K8S_POD_UID`.
    pub pod_uid: String,
    /// `K8S_POD_INFRA_CONTAINER_ID`.
    pub infra_container_id: String,
}

impl Args {
    /// Parses `KEY=VALUE;KEY=VALUE`. As in libcni the last of equal keys counts
    /// and an unknown key is an error unless `IgnoreUnknown` is 1 or true. More
    /// lenient than libcni, which has no reason to refuse them: an empty pair
    /// (`a=b;`) and a `=` in a value.
    ///
    /// # Errors
    /// [`code::INVALID_ENVIRONMENT`], naming the pair or the unknown keys.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut args = Self::default();
        let mut ignore_unknown = false;
        let mut unknown = Vec::new();
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(invalid(format!("CNI_ARGS has {pair:?}, which is no KEY=VALUE")));
            };
            match key {
                "IgnoreUnknown" => ignore_unknown = boolean(value)?,
                "K8S_POD_NAME" => args.pod_name = value.to_owned(),
                "K8S_POD_NAMESPACE" => args.pod_namespace = value.to_owned(),
                "K8S_POD_UID" => args.pod_uid = value.to_owned(),
                "K8S_POD_INFRA_CONTAINER_ID" => args.infra_container_id = value.to_owned(),
                other => unknown.push(other),
            }
        }
        if !unknown.is_empty() && !ignore_unknown {
            return Err(invalid(format!("CNI_ARGS has unknown keys: {}", unknown.join(", "))));
        }
        Ok(args)
    }

    /// Whether this is a Kubernetes pod: both name and namespace are known.
    #[must_use]
    pub fn is_pod(&self) -> bool {
        !self.pod_name.is_empty() && !self.pod_namespace.is_empty()
    }
}

fn boolean(value: &str) -> Result<bool, Error> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(invalid(format!(
            "CNI_ARGS has IgnoreUnknown={value}, which is neither 1, true, 0 nor false"
        ))),
    }
}

fn invalid(msg: String) -> Error {
    Error::new(
        code::INVALID_ENVIRONMENT,
        msg,
        "the container runtime sets CNI_ARGS as KEY=VALUE pairs separated by ';'; with IgnoreUnknown=1 unknown keys are allowed",
    )
}
