//! The Runtime API of AWS Lambda, as far as a function's process uses it.
//!
//! A server belongs to one start of the function's process: a request that a killed process has
//! left behind cannot be taken for one of its successor's. Requests become [`Call`]s; what to
//! answer, and when, is decided by the caller, in one thread.
//! Source: <https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html>.

use crate::limits;
use anyhow::{Context, Result, anyhow};
use serde_json::json;
use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;
use tiny_http::{Header, Method, Request, Response, Server};

const VERSION: &str = "/2018-06-01/runtime/";

/// A request, waiting for its answer.
pub struct Call {
    request: Request,
    /// What it asks.
    pub kind: CallKind,
}

/// What the function's process says.
#[derive(Debug)]
pub enum CallKind {
    /// Give me an event.
    Next,
    /// The answer to this event.
    Response { id: String, body: Vec<u8> },
    /// The failure of this event.
    Error {
        id: String,
        error_type: Option<String>,
        body: Vec<u8>,
    },
    /// I cannot start.
    InitError {
        error_type: Option<String>,
        body: Vec<u8>,
    },
    /// Nothing that the API has.
    Unknown,
}

/// A running server; it stops when this is dropped.
pub struct Api {
    server: Arc<Server>,
    /// `host:port`, the value of `AWS_LAMBDA_RUNTIME_API`.
    pub address: String,
}

impl Api {
    /// Starts a server that hands every request to `deliver`.
    pub fn start(deliver: impl Fn(Call) + Send + 'static) -> Result<Self> {
        let server = Server::http(SocketAddr::from(([127, 0, 0, 1], 0)))
            .map_err(|error| anyhow!("{error}"))
            .context("failed to open a port for the Runtime API")?;
        let server = Arc::new(server);
        let address = server.server_addr().to_string();
        let serving = Arc::clone(&server);
        std::thread::spawn(move || {
            while let Ok(mut request) = serving.recv() {
                // A connection that breaks while sending is a call that was never made.
                if let Ok(kind) = read(&mut request) {
                    deliver(Call { request, kind });
                }
            }
        });
        Ok(Self { server, address })
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.server.unblock();
    }
}

fn read(request: &mut Request) -> std::io::Result<CallKind> {
    let error_type = request
        .headers()
        .iter()
        .find(|header| header.field.equiv("Lambda-Runtime-Function-Error-Type"))
        .map(|header| header.value.to_string());
    let mut body = Vec::new();
    // One byte more than allowed shows that it is too long; the rest is not kept.
    request
        .as_reader()
        .take(limits::RESPONSE.value + 1)
        .read_to_end(&mut body)?;
    let Some(path) = request.url().strip_prefix(VERSION) else {
        return Ok(CallKind::Unknown);
    };
    let parts: Vec<&str> = path.trim_end_matches('/').split('/').collect();
    Ok(match (request.method(), parts.as_slice()) {
        (Method::Get, ["invocation", "next"]) => CallKind::Next,
        (Method::Post, ["init", "error"]) => CallKind::InitError { error_type, body },
        (Method::Post, ["invocation", id, "response"]) => CallKind::Response {
            id: (*id).to_owned(),
            body,
        },
        (Method::Post, ["invocation", id, "error"]) => CallKind::Error {
            id: (*id).to_owned(),
            error_type,
            body,
        },
        _ => CallKind::Unknown,
    })
}

/// One event on its way to the function.
pub struct Delivery<'a> {
    pub id: &'a str,
    pub event: &'a [u8],
    /// Milliseconds since 1970.
    pub deadline_ms: u128,
    pub arn: &'a str,
    pub trace_id: &'a str,
}

impl Call {
    /// Answers `next` with an event.
    pub fn deliver(self, delivery: &Delivery<'_>) {
        let headers = [
            ("Content-Type", "application/json"),
            ("Lambda-Runtime-Aws-Request-Id", delivery.id),
            (
                "Lambda-Runtime-Deadline-Ms",
                &delivery.deadline_ms.to_string(),
            ),
            ("Lambda-Runtime-Invoked-Function-Arn", delivery.arn),
            ("Lambda-Runtime-Trace-Id", delivery.trace_id),
        ];
        self.answer(200, delivery.event.to_vec(), &headers);
    }

    /// Answers that the call was taken.
    pub fn accept(self) {
        self.answer(
            202,
            br#"{"status":"OK"}"#.to_vec(),
            &[("Content-Type", "application/json")],
        );
    }

    /// Answers with an error of the API.
    pub fn refuse(self, status: u16, error_type: &str, message: &str) {
        let body = json!({ "errorType": error_type, "errorMessage": message }).to_string();
        self.answer(
            status,
            body.into_bytes(),
            &[("Content-Type", "application/json")],
        );
    }

    fn answer(self, status: u16, body: Vec<u8>, headers: &[(&str, &str)]) {
        let mut response = Response::from_data(body)
            .with_status_code(status)
            .with_chunked_threshold(usize::MAX);
        for (name, value) in headers {
            response.add_header(header(name, value));
        }
        // A process that was killed does not read its answer, and need not.
        _ = self.request.respond(response);
    }
}

fn header(name: &str, value: &str) -> Header {
    Header::from_bytes(name, value).expect("headers are ASCII")
}
