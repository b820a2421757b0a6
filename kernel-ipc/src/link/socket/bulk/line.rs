//! A client's connection for leased bytes: made when it is needed, and made again when it is lost.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::Shutdown;
use std::rc::Rc;
use std::time::Duration;

use super::super::carrier::Carrier;
use super::super::dial::{Options, Remote};
use super::super::frame::{Bulk, FrameError};
use super::super::greeting::{self, Unanswered};
use super::super::stream::Stream;
use crate::runtime::{self, Signal};

/// Between two attempts, at first and at most.
const RETRY_FIRST: Duration = Duration::from_millis(1);
const RETRY_MOST: Duration = Duration::from_millis(200);

/// See the module's contract.
pub(super) struct Line {
    /// It may be needed now, or it is over.
    pub(super) changed: Rc<Signal>,
    over: Cell<bool>,
    /// The present connection: who waits for it is woken by its end.
    connection: RefCell<Option<Carrier>>,
    pause: Cell<Duration>,
}

impl Line {
    pub(super) fn new(changed: Rc<Signal>) -> Line {
        Line { changed, over: Cell::new(false), connection: RefCell::default(), pause: Cell::new(RETRY_FIRST) }
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.get()
    }

    /// The present connection is of use.
    pub(super) fn is_of_use(&self) {
        self.pause.set(RETRY_FIRST);
    }

    /// No connection is made any more, and the present one ends.
    pub(super) fn end(&self) {
        self.over.set(true);
        if let Some(connection) = self.connection.take() {
            // What is under way is given up by who waits for it, when it hears of this.
            connection.shutdown(Shutdown::Both);
        }
        self.changed.raise();
    }

    /// Sees to it that there is a connection whenever one `is_needed`, and has it used until it ends, again and again until this is
    /// [over](Self::end). A peer that breaks a rule is `told` of, and that is the end, too.
    pub(super) async fn keep(
        &self,
        (remote, mut hello, options): (Remote, Bulk, Options),
        is_needed: impl Fn() -> bool,
        carry: impl AsyncFn(&Stream) -> Unanswered,
        told: impl Fn(FrameError),
    ) {
        loop {
            while !is_needed() && !self.over.get() {
                self.changed.wait().await;
            }
            if self.over.get() {
                return;
            }
            hello.number += 1;
            let ended = match connect(&remote, &hello, &options).await {
                Ok(stream) => {
                    self.connection.replace(Some(stream.carrier().clone()));
                    let ended = if self.over.get() { aborted() } else { carry(&stream).await };
                    self.connection.take();
                    stream.abort();
                    ended
                }
                Err(error) => error,
            };
            if self.over.get() {
                return;
            }
            match ended {
                Unanswered::Frame(what) => {
                    told(what);
                    return self.end();
                }
                Unanswered::Io(error) => tracing::debug!("leased bytes of {}: {error}", remote.address()),
                Unanswered::Refused(refusal) => tracing::debug!("leased bytes of {}: {refusal}", remote.address()),
            }
            runtime::sleep(self.pause.get()).await;
            self.pause.set((2 * self.pause.get()).min(RETRY_MOST));
        }
    }
}

pub(super) fn aborted() -> Unanswered {
    io::Error::from(io::ErrorKind::ConnectionAborted).into()
}

pub(super) fn timed_out() -> Unanswered {
    io::Error::from(io::ErrorKind::TimedOut).into()
}

async fn connect(remote: &Remote, hello: &Bulk, options: &Options) -> Result<Stream, Unanswered> {
    let greet = async {
        let stream = remote.dial(options.dead_after).await?;
        greeting::greet_bulk(&stream, hello).await?;
        Ok(stream)
    };
    match runtime::timeout(options.greeting, greet).await {
        Ok(greeted) => greeted,
        Err(runtime::Elapsed) => Err(timed_out()),
    }
}
