//! Lambda's Runtime API with nothing but the standard library: a function that builds in half a second.

use std::io::{Read, Write};
use std::net::TcpStream;

/// Answers events until the process is ended.
pub fn run(mut handler: impl FnMut(&str) -> Result<String, String>) -> ! {
    let api = std::env::var("AWS_LAMBDA_RUNTIME_API").expect("started by Lambda");
    loop {
        let (head, event) = call(&api, "GET", "next", "");
        let id = head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(name, _)| name.eq_ignore_ascii_case("Lambda-Runtime-Aws-Request-Id"))
            .map(|(_, id)| id.to_owned())
            .expect("every event has an id");
        let (what, body) = match handler(&event) {
            Ok(answer) => ("response", answer),
            Err(text) => (
                "error",
                format!("{{\"errorType\":\"Function.Refused\",\"errorMessage\":{text:?}}}"),
            ),
        };
        call(&api, "POST", &format!("{id}/{what}"), &body);
    }
}

/// One request: its answer's head and body. HTTP/1.0 ends a body with the connection.
fn call(api: &str, method: &str, path: &str, body: &str) -> (String, String) {
    let mut stream = TcpStream::connect(api).expect("the Runtime API listens");
    let path = format!("/2018-06-01/runtime/invocation/{path}");
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .expect("the Runtime API reads");
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .expect("the Runtime API answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
    (head.to_owned(), body.to_owned())
}
