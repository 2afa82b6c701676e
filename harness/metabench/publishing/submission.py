"""`submission.json`: what somebody needs to run the cells of a bundle again, and nothing else."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from metabench.episodes.digest import digest
from metabench.errors import EvidenceError, MetabenchError
from metabench.plugins import GROUP, PluginInfo
from metabench.publishing.evidence import DIGEST, Proof
from metabench.publishing.files import Files, first_problem, read_json
from metabench.publishing.published import SUBMISSION
from metabench.registry import Registry
from metabench.runner.cells import Choice
from metabench.runner.resolve import PluginKind, load_choice
from metabench.store.code import code_digest
from metabench.store.files import bytes_digest, json_bytes

SCHEMES = ("https", "http", "ssh", "git")
SYSTEMS = ("git", "hg", "svn", "bzr")


_NAME = r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"
_VERSION = r"[A-Za-z0-9][A-Za-z0-9.!+_-]*"
_ADDRESS = (
    rf"({'|'.join(SYSTEMS)})\+({'|'.join(SCHEMES)})://(git@)?[A-Za-z0-9.:-]+/[A-Za-z0-9_./~+%-]*"
    r"@[A-Za-z0-9_.-]+(#subdirectory=[A-Za-z0-9_./-]+)?"
)
_INSTALL = f"{_NAME}=={_VERSION}|{_ADDRESS}"
"""What `install_line` writes: pip takes much more than that, options among it."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class PluginSource(_Model):
    """A plugin of the bundle and where it comes from.

    Attributes:
        kind, name: as the records name it.
        code: the source digests that the records have of it.
        distribution, version, entry_point: what brought it on the machine of the bundle.
        install: for pip: `name==version`, or the address of a version-control system.
        same_code: whether what is installed there is still what the records were made with.
    """

    kind: Literal["algorithm", "backbone", "dataset"]
    name: str = Field(min_length=1, max_length=200)
    code: list[str] = Field(min_length=1, max_length=1000)
    distribution: str = Field(max_length=200, pattern=f"^{_NAME}$")
    version: str = Field(max_length=200, pattern=f"^{_VERSION}$")
    entry_point: str = Field(max_length=500)
    install: str = Field(max_length=1000, pattern=f"^({_INSTALL})$")
    same_code: bool


class Environment(_Model):
    """On what cells ran, from an allow-list."""

    metabench: str
    python: str
    torch: str
    numpy: str
    platform: str
    instructions: str = ""
    device: str


class Submission(_Model):
    """`submission.json`.

    Attributes:
        metabench: the version that made the bundle.
        environments: all that cells ran on, each once.
        files: digests of all other files of the bundle.
        digest: of all other fields.
    """

    format: Literal[1] = 1
    metabench: str
    suite: str
    plugins: list[PluginSource]
    environments: list[Environment]
    files: dict[str, str]
    digest: str = Field("", pattern=f"^$|{DIGEST}")

    @classmethod
    def of(
        cls, suite: str, proofs: Sequence[Proof], files: Mapping[str, bytes], registry: Registry
    ) -> Self:
        """Of a bundle of these files.

        Raises:
            EvidenceError: a plugin that comes from no installed distribution.
        """
        import metabench

        draft = cls(
            metabench=metabench.__version__,
            suite=suite,
            plugins=_plugins(proofs, registry),
            environments=_environments(proofs),
            files={name: bytes_digest(data) for name, data in files.items()},
        )
        return draft.model_copy(update={"digest": draft._seal()})

    @classmethod
    def read(cls, files: Files) -> Self:
        """That of a bundle; EvidenceError where it's none, or of other files."""
        try:
            found = cls.model_validate(read_json(files, SUBMISSION))
        except ValidationError as error:
            raise first_problem(SUBMISSION, error) from error
        if found.digest != found._seal():
            raise EvidenceError(f"{SUBMISSION} was changed after it was made")
        there = set(files.names()) - {SUBMISSION}
        if odd := sorted(there ^ set(found.files)):
            raise EvidenceError(f"{odd[0]} is listed in {SUBMISSION} or in the bundle, not in both")
        for name, expected in found.files.items():
            if bytes_digest(files.read(name)) != expected:
                raise EvidenceError(f"{name} was changed after the bundle was made")
        return found

    def check_follows(self, proofs: Sequence[Proof]) -> None:
        """EvidenceError where plugins, codes or machines are others than those of these cells."""
        told = [(plugin.kind, plugin.name, plugin.code) for plugin in self.plugins]
        found = [(kind, name, codes) for (kind, name), (_, codes) in _used(proofs).items()]
        if told != found:
            raise EvidenceError("its plugins, or their codes, are not those of its records")
        if self.environments != _environments(proofs):
            raise EvidenceError("its environments are not those on which its cells ran")
        for plugin in self.plugins:
            plain = f"{plugin.distribution}=={plugin.version}"
            if "://" not in plugin.install and plugin.install != plain:
                raise EvidenceError(f"{plugin.install} does not install {plain}")

    def to_bytes(self) -> bytes:
        return json_bytes(self.model_dump(mode="json"))

    def _seal(self) -> str:
        return digest(self.model_dump(mode="json", exclude={"digest"}))


def _used(
    proofs: Iterable[Proof],
) -> dict[tuple[PluginKind, str], tuple[Choice, list[str]]]:
    """Of each plugin, sorted, a choice of it and its codes."""
    used: dict[tuple[PluginKind, str], tuple[Choice, set[str]]] = {}
    for proof in proofs:
        identity = proof.record.identity
        parts: list[tuple[PluginKind, Any]] = [
            ("algorithm", identity.algorithm),
            ("backbone", identity.backbone),
            ("dataset", identity.dataset),
        ]
        for kind, part in parts:
            choice = Choice(name=part.name, label=part.name, hyperparameters=part.hp)
            used.setdefault((kind, part.name), (choice, set()))[1].add(part.code)
    ordered = sorted(used.items(), key=lambda item: item[0])
    return {key: (choice, sorted(codes)) for key, (choice, codes) in ordered}


def _plugins(proofs: Sequence[Proof], registry: Registry) -> list[PluginSource]:
    return [
        _source(kind, choice, codes, registry)
        for (kind, _), (choice, codes) in _used(proofs).items()
    ]


def _source(kind: PluginKind, choice: Choice, codes: list[str], registry: Registry) -> PluginSource:
    entry = registry.find(kind, choice.name)
    owner = entry.owner if entry else ""
    info = next((plugin for plugin in registry.plugins if _label(plugin) == owner), None)
    if info is None:
        raise EvidenceError(
            f"{kind} {choice.name} is of no plugin that is installed here: nobody could run it",
            "put it into a package (metabench new writes one), install that and run it again",
        )
    try:
        here = code_digest(load_choice(registry, kind, choice)[0])
    except MetabenchError:  # other settings, or it can't be imported: other code
        here = None
    found = importlib.metadata.distribution(info.distribution)
    point = next(p for p in found.entry_points if (p.group, p.name) == (GROUP, info.name))
    return PluginSource(
        kind=kind,
        name=choice.name,
        code=codes,
        distribution=info.distribution,
        version=info.version,
        entry_point=f"{info.name} = {point.value}",
        install=install_line(info.distribution, info.version, found.read_text("direct_url.json")),
        same_code=codes == [here],
    )


def _label(info: PluginInfo) -> str:
    """As `Entry.owner` names it."""
    return f"plugin {info.name!r} of {info.distribution} {info.version}"


def install_line(distribution: str, version: str, direct_url: str | None) -> str:
    """What pip installs: a commit of a repository if it came from one (PEP 610), else a version.

    Where it came from a folder of this machine, that is nobody's business, and a version is all
    that can be said. User names and passwords of an address are left out.
    """
    plain = f"{distribution}=={version}"
    try:
        told = json.loads(direct_url or "{}")
        address, system = urlsplit(told["url"]), told["vcs_info"]
        known = system["vcs"] in SYSTEMS and address.scheme in SCHEMES and address.hostname
        commit, folder = str(system["commit_id"]), str(told.get("subdirectory", ""))
    except (ValueError, KeyError, TypeError):
        return plain
    if not known:
        return plain
    user = "git@" if address.scheme == "ssh" and address.username == "git" else ""
    port = f":{address.port}" if address.port else ""
    inside = f"#subdirectory={folder}" if folder else ""
    place = f"{address.scheme}://{user}{address.hostname}{port}{address.path}"
    line = f"{system['vcs']}+{place}@{commit}{inside}"
    return line if re.fullmatch(_ADDRESS, line) else plain


def _environments(proofs: Iterable[Proof]) -> list[Environment]:
    found = {
        Environment(
            **{name: getattr(proof.cell.run, name) for name in _OF_RUN},
            device=proof.record.identity.numerics.device,
        )
        for proof in proofs
    }
    return sorted(found, key=lambda environment: json.dumps(environment.model_dump()))


_OF_RUN = ("metabench", "python", "torch", "numpy", "platform", "instructions")
