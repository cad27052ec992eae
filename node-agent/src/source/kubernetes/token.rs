//! The agent's token, read again as the kubelet renews it.
//!
//! kube's client would do that by the date: once the clock was set back, it bears the
//! old token until the date is reached again, and all that the agent gets is 401.

use http::HeaderValue;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a token is borne that was read. The kubelet renews one long before it ends.
const FRESH: Duration = Duration::from_secs(50);

/// A file with a token.
pub(super) struct Token {
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    header: HeaderValue,
    /// None: it was not accepted.
    read: Option<Instant>,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Token {
    /// Reads it for the first time.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let state = State { header: read(path)?, read: Some(Instant::now()) };
        Ok(Self { path: path.to_owned(), state: Mutex::new(state) })
    }

    /// The value of `Authorization`. A file that cannot be read is no reason to drop
    /// what was in it.
    pub(super) fn header(&self) -> HeaderValue {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.read.is_none_or(|at| at.elapsed() > FRESH) {
            state.read = Some(Instant::now());
            if let Ok(header) = read(&self.path) {
                state.header = header;
            }
        }
        state.header.clone()
    }

    /// The server did not accept it: there may be another one by now.
    pub(super) fn refused(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).read = None;
    }
}

fn read(path: &Path) -> io::Result<HeaderValue> {
    let text = fs::read_to_string(path)?;
    let mut header = HeaderValue::try_from(format!("Bearer {}", text.trim()))
        .map_err(|_| io::Error::other("it holds characters that no token has"))?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_file_when_it_was_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        assert!(Token::open(&path).is_err());
        fs::write(&path, "one\n").unwrap();
        let token = Token::open(&path).unwrap();
        fs::write(&path, "two").unwrap();
        assert_eq!(token.header(), "Bearer one");
        token.refused();
        assert_eq!(token.header(), "Bearer two");
        fs::remove_file(&path).unwrap();
        token.refused();
        assert_eq!(token.header(), "Bearer two", "the last one that there was");
        assert!(!format!("{token:?} {:?}", token.header()).contains("two"));
        fs::write(&path, "a\nb").unwrap();
        assert!(Token::open(&path).is_err());
    }
}
