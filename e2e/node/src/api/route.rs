//! A request's path and method, as what they mean.

use super::http::Request;
use super::store::kind_of;

/// What a request is about.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub(super) group: &'static str,
    pub(super) resource: String,
    pub(super) subresource: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) verb: &'static str,
}

impl Route {
    /// `/api/v1/...` or `/apis/GROUP/VERSION/...`.
    pub(super) fn of(request: &Request) -> Option<Self> {
        let mut parts: Vec<&str> =
            request.path.split('/').filter(|part| !part.is_empty()).collect();
        let group = match parts.as_slice() {
            ["api", "v1", ..] => {
                parts.drain(..2);
                ""
            }
            ["apis", "apps", "v1", ..] => {
                parts.drain(..3);
                "apps"
            }
            _ => return None,
        };
        let (namespace, rest): (&str, &[&str]) = match parts.as_slice() {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (namespace, rest),
            all => ("", all),
        };
        let (resource, name, subresource) = match rest {
            [resource] => (*resource, "", ""),
            [resource, name] => (*resource, *name, ""),
            [resource, name, sub] => (*resource, *name, *sub),
            _ => return None,
        };
        kind_of(resource)?;
        let watching = matches!(request.query.get("watch").map(String::as_str), Some("true" | "1"));
        let verb = match (request.method.as_str(), name.is_empty()) {
            ("GET", true) if watching => "watch",
            ("GET", true) => "list",
            ("GET", false) => "get",
            ("POST", true) => "create",
            ("PATCH", false) => "patch",
            ("DELETE", false) => "delete",
            _ => return None,
        };
        Some(Self {
            group,
            resource: resource.to_owned(),
            subresource: subresource.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            verb,
        })
    }
}
