//! The phases of an execution environment: init, invokes, resets, and what Lambda says of each.
//!
//! One thread decides. Requests of the Runtime API and news from the inner half arrive on one
//! channel in the order in which they happened. A process that was killed is gone before the next
//! is started; /tmp stays.
//! Source: <https://docs.aws.amazon.com/lambda/latest/dg/lambda-runtime-environment.html>.

use super::control::{FromInit, ToInit, receive, send};
use super::failure::Failure;
use super::report::{InitOutcome, InitPhase, InvokePhase, RunReport};
use super::runtime_api::{Api, Call, CallKind, Delivery};
use super::{Answer, Options, environment, seccomp};
use crate::event::{Event, Sink};
use crate::limits;
use anyhow::{Context, anyhow, bail};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread::Scope;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What can happen.
pub enum Message {
    /// A request of the process with this number.
    Call(usize, Call),
    /// News from the inner half, and when it came.
    Inner(FromInit, Instant),
    /// The inner half is gone.
    Gone(anyhow::Error),
}

/// Turns what the inner half says into messages, and answers its refused system calls.
pub fn listen<'scope>(
    scope: &'scope Scope<'scope, '_>,
    control: &'scope OwnedFd,
    refused: &'scope seccomp::Refused,
    sender: &Sender<Message>,
) {
    loop {
        let message = match receive::<FromInit>(control.as_fd()) {
            Ok(Some((message, listener))) => {
                let at = Instant::now();
                if let Some(listener) = listener {
                    scope.spawn(move || seccomp::supervise(&listener, refused));
                }
                Message::Inner(message, at)
            }
            Ok(None) => Message::Gone(anyhow!("the sandbox ended")),
            Err(error) => Message::Gone(error),
        };
        let gone = matches!(message, Message::Gone(_));
        // A run that has failed does not listen any more.
        if sender.send(message).is_err() || gone {
            return;
        }
    }
}

/// A started process of the function.
pub struct Process {
    number: usize,
    /// Serves the Runtime API for as long as the process is ours.
    _api: Api,
    /// It has been executed. Its first request can overtake that news.
    started: bool,
    /// Its request for an event, once it has come.
    next: Option<Call>,
    /// It has not had an event yet.
    fresh: bool,
}

/// The function and what is known about its process.
pub struct Function<'a> {
    pub options: &'a Options,
    pub environment: Vec<(String, String)>,
    /// The bootstrap as (path on the host, path inside).
    pub entrypoint: Option<(PathBuf, PathBuf)>,
    pub control: BorrowedFd<'a>,
    pub sender: Sender<Message>,
    pub messages: Receiver<Message>,
    pub sink: Sink<'a>,
    pub report: &'a mut RunReport,
    pub process: Option<Process>,
    /// We are ending the process: its exit is none of its own.
    pub ending: bool,
}

/// A message that concerns the present process.
enum News {
    Call(Call),
    Started { filtered: bool, at: Instant },
    ExecFailed(i32),
    Exited(Failure),
}

impl Function<'_> {
    /// The Init phase, then one invoke for each event.
    pub fn run(
        &mut self,
        events: &[Vec<u8>],
        on_answer: &mut dyn FnMut(usize, &Answer),
    ) -> anyhow::Result<()> {
        let init = Duration::from_secs(limits::INIT.value);
        if let Some((_, inside)) = self.entrypoint.clone()
            && let Err(failure) = self.init(Instant::now() + init, false)?
        {
            let why = match &failure {
                Failure::TimedOut => format!("took more than {} s", init.as_secs()),
                other => format!("failed ({})", other.error_type()),
            };
            if let Failure::InvalidEntrypoint(_) = failure {
                self.hint();
            }
            (self.sink)(Event::Warning(&format!(
                "the Init phase of `{}` {why}\n  init runs again at the first event, under the \
                 function's timeout, as on Lambda",
                inside.display()
            )));
        }
        for (index, event) in events.iter().enumerate() {
            let answer = self.invoke(event)?;
            self.report.invokes.push(InvokePhase {
                request_id: answer.request_id.clone(),
                ms: milliseconds(answer.duration),
                cold: answer.cold,
                error: answer.error.clone(),
            });
            on_answer(index, &answer);
        }
        Ok(())
    }

    /// Ends the process, if there is one.
    pub fn end(&mut self) -> anyhow::Result<()> {
        if self.process.is_none() {
            return Ok(());
        }
        send(self.control, &ToInit::Kill, None)?;
        self.ending = true;
        while self.process.is_some() {
            self.wait(None)?;
        }
        self.ending = false;
        Ok(())
    }

    /// Starts the process and waits for it to ask for an event.
    fn init(
        &mut self,
        deadline: Instant,
        during_invoke: bool,
    ) -> anyhow::Result<Result<(), Failure>> {
        let Some(_) = self.entrypoint else {
            let message = "Couldn't find valid bootstrap(s): [/var/task/bootstrap /opt/bootstrap]";
            return Ok(Err(Failure::InvalidEntrypoint(message.to_owned())));
        };
        let number = self.report.inits.len();
        let sender = self.sender.clone();
        // A run that has failed does not listen any more.
        let api = Api::start(move |call| _ = sender.send(Message::Call(number, call)))?;
        let mut environment = self.environment.clone();
        environment.push(("AWS_LAMBDA_RUNTIME_API".to_owned(), api.address.clone()));
        send(self.control, &ToInit::Start { environment }, None)?;
        self.process = Some(Process {
            number,
            _api: api,
            started: false,
            next: None,
            fresh: true,
        });

        let mut began = Instant::now();
        let result = self.await_next(deadline, &mut began)?;
        let ended = Instant::now();
        if let Err(Failure::TimedOut | Failure::Reported { .. }) = result {
            self.end()?;
        }
        self.report.inits.push(InitPhase {
            ms: milliseconds(ended.saturating_duration_since(began)),
            outcome: result
                .as_ref()
                .map_or_else(Failure::outcome, |()| InitOutcome::Ready),
            during_invoke,
        });
        Ok(result)
    }

    /// Until `next`, or a failure. `began` becomes the time of exec.
    fn await_next(
        &mut self,
        deadline: Instant,
        began: &mut Instant,
    ) -> anyhow::Result<Result<(), Failure>> {
        let mut exec_failed = None;
        loop {
            if let Some(Process {
                started: true,
                next: Some(_),
                ..
            }) = self.process
            {
                return Ok(Ok(()));
            }
            match self.wait(Some(deadline))? {
                None => return Ok(Err(Failure::TimedOut)),
                Some(News::Started { filtered, at }) => {
                    *began = at;
                    if let Some(process) = &mut self.process {
                        process.started = true;
                    }
                    let note = "refused system calls: this kernel cannot name them";
                    if !filtered && !self.report.not_enforced.iter().any(|known| known == note) {
                        self.report.not_enforced.push(note.to_owned());
                    }
                }
                Some(News::ExecFailed(errno)) => {
                    exec_failed = Some(errno);
                    // What ends now is ours, not the function's.
                    self.ending = true;
                }
                Some(News::Exited(failure)) => {
                    self.ending = false;
                    let failure =
                        exec_failed.map_or(failure, |errno| self.entrypoint_failure(errno));
                    return Ok(Err(failure));
                }
                Some(News::Call(mut call)) => match call.kind {
                    CallKind::Next => {
                        if let Some(process) = &mut self.process {
                            process.next = Some(call);
                        }
                    }
                    CallKind::InitError { .. } => {
                        let result = reported(&mut call).map(drop);
                        call.accept();
                        return Ok(result);
                    }
                    _ => refuse(call),
                },
            }
        }
    }

    /// Hands one event to the process, starting it again if it is gone.
    fn invoke(&mut self, event: &[u8]) -> anyhow::Result<Answer> {
        let request_id = request_id()?;
        let began = Instant::now();
        let deadline = began + self.options.timeout;
        let mut cold = true;
        let outcome = match self.process {
            Some(_) => Ok(()),
            None => self.init(deadline, true)?,
        };
        let outcome = match outcome {
            Ok(()) => {
                let process = self.process.as_mut().context("no process after init")?;
                cold = std::mem::replace(&mut process.fresh, false);
                let next = process.next.take().context("no request for an event")?;
                self.deliver(next, event, &request_id, deadline)?;
                self.await_answer(&request_id, deadline)?
            }
            Err(failure) => Err(failure),
        };
        let duration = began.elapsed();
        if matches!(outcome, Err(Failure::TimedOut)) {
            self.end()?;
        }
        // An invoke ends when the process asks for the next event; it may work until then.
        if self.process.is_some()
            && let Err(Failure::TimedOut) = self.await_next(deadline, &mut Instant::now())?
        {
            (self.sink)(Event::Warning(
                "the function did not ask for its next event before its timeout: it was killed",
            ));
            self.end()?;
        }
        let (payload, error) = match outcome {
            Ok(body) => (body, None),
            Err(failure) => {
                let error = failure.error_type().to_owned();
                (
                    failure.payload(&request_id, self.options.timeout),
                    Some(error),
                )
            }
        };
        Ok(Answer {
            request_id,
            payload,
            error,
            duration,
            cold,
        })
    }

    fn deliver(&self, next: Call, event: &[u8], id: &str, deadline: Instant) -> anyhow::Result<()> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .context("clock before 1970")?;
        let left = deadline.saturating_duration_since(Instant::now());
        let (region, name) = (environment::region(), &self.options.function_name);
        let random = hex(&random()?);
        next.deliver(&Delivery {
            id,
            event,
            deadline_ms: (now + left).as_millis(),
            arn: &format!("arn:aws:lambda:{region}:000000000000:function:{name}"),
            trace_id: &format!(
                "Root=1-{:08x}-{};Parent={};Sampled=0",
                now.as_secs(),
                &random[..24],
                &random[8..24]
            ),
        });
        Ok(())
    }

    fn await_answer(
        &mut self,
        id: &str,
        deadline: Instant,
    ) -> anyhow::Result<Result<Vec<u8>, Failure>> {
        loop {
            let mut call = match self.wait(Some(deadline))? {
                None => return Ok(Err(Failure::TimedOut)),
                Some(News::Exited(failure)) => return Ok(Err(failure)),
                Some(News::Call(call)) => call,
                Some(News::Started { .. } | News::ExecFailed(_)) => bail!("news of no process"),
            };
            let for_this = match &call.kind {
                CallKind::Response { id: given, .. } | CallKind::Error { id: given, .. } => {
                    given == id
                }
                _ => false,
            };
            if !for_this {
                refuse(call);
                continue;
            }
            let result = reported(&mut call);
            match result {
                Err(Failure::TooLarge) => {
                    let message = "Exceeded maximum allowed payload size";
                    call.refuse(413, "RequestEntityTooLarge", message);
                }
                _ => call.accept(),
            }
            return Ok(result);
        }
    }

    /// The next thing that happens to the present process; `None` at the deadline.
    fn wait(&mut self, deadline: Option<Instant>) -> anyhow::Result<Option<News>> {
        loop {
            let message = match deadline {
                None => self
                    .messages
                    .recv()
                    .context("the sandbox's threads ended")?,
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    match self.messages.recv_timeout(left) {
                        Ok(message) => message,
                        Err(RecvTimeoutError::Timeout) => return Ok(None),
                        Err(error) => return Err(error).context("the sandbox's threads ended"),
                    }
                }
            };
            let present = self.process.as_ref().map(|process| process.number);
            match message {
                Message::Call(number, call) if present == Some(number) => {
                    return Ok(Some(News::Call(call)));
                }
                Message::Call(..) => {}
                Message::Gone(error) => return Err(error),
                Message::Inner(FromInit::Started { filtered }, at) => {
                    return Ok(Some(News::Started { filtered, at }));
                }
                Message::Inner(FromInit::ExecFailed { errno }, _) => {
                    return Ok(Some(News::ExecFailed(errno)));
                }
                Message::Inner(FromInit::Failed { message }, _) => {
                    bail!("failed to set up the function's process: {message}")
                }
                Message::Inner(FromInit::Ready | FromInit::Cannot { .. }, _) => {}
                Message::Inner(
                    FromInit::Exited {
                        exit,
                        out_of_memory,
                        peak_memory,
                        peak_tmp,
                    },
                    _,
                ) => {
                    self.process = None;
                    if !self.ending && !out_of_memory {
                        self.report.exits.push(exit);
                    }
                    self.report.peak_memory = self.report.peak_memory.max(peak_memory);
                    self.report.tmp_used = self.report.tmp_used.max(peak_tmp);
                    let failure = if out_of_memory {
                        Failure::OutOfMemory
                    } else {
                        Failure::Exited(exit)
                    };
                    return Ok(Some(News::Exited(failure)));
                }
            }
        }
    }

    fn entrypoint_failure(&self, errno: i32) -> Failure {
        let path = self
            .entrypoint
            .as_ref()
            .map(|(_, inside)| inside.display().to_string());
        let why = nix::errno::Errno::from_raw(errno).desc().to_lowercase();
        Failure::InvalidEntrypoint(format!("fork/exec {}: {why}", path.unwrap_or_default()))
    }

    /// Says more than Lambda does about a bootstrap that cannot be executed.
    fn hint(&self) {
        let Some((host, _)) = &self.entrypoint else {
            return;
        };
        if let Some(hint) = super::provided::why_not_executable(host) {
            (self.sink)(Event::Note(&hint));
        }
    }
}

/// What a call reports, taken out of it.
fn reported(call: &mut Call) -> Result<Vec<u8>, Failure> {
    match std::mem::replace(&mut call.kind, CallKind::Unknown) {
        CallKind::Response { body, .. } if body.len() as u64 > limits::RESPONSE.value => {
            Err(Failure::TooLarge)
        }
        CallKind::Response { body, .. } => Ok(body),
        CallKind::Error {
            error_type, body, ..
        }
        | CallKind::InitError { error_type, body } => Err(Failure::Reported { error_type, body }),
        CallKind::Next | CallKind::Unknown => Ok(Vec::new()),
    }
}

/// Answers a call that does not belong here.
fn refuse(call: Call) {
    match call.kind {
        CallKind::Response { .. } | CallKind::Error { .. } => {
            call.refuse(400, "InvalidRequestID", "Invalid request ID");
        }
        CallKind::Next | CallKind::InitError { .. } => {
            call.refuse(
                403,
                "InvalidStateTransition",
                "State transition is not allowed",
            );
        }
        CallKind::Unknown => call.refuse(404, "NotFound", "No such path in the Runtime API"),
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn random() -> anyhow::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("failed to read `/dev/urandom`")?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A random UUID (RFC 9562, version 4).
fn request_id() -> anyhow::Result<String> {
    let mut bytes = random()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = hex(&bytes);
    let parts = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ];
    Ok(parts.join("-"))
}
