"""What the routes answer, as types for the schema; a test compares them with real answers."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class Status(BaseModel):
    """The process runs, or takes requests."""

    status: Literal["ok", "ready"]


class Versions(BaseModel):
    """Which model and catalog answer."""

    model: str = Field(description="Name of the model.")
    model_version: int = Field(description="Grows with every load of this process.")
    model_digest: str | None = Field(description="Of the bundle; equal in any two processes with the same one.")
    catalog_version: int = Field(description="Grows with every change in this process.")
    catalog: str = Field(description="Fingerprint of the ids in order, shortened.")
    catalog_digest: str = Field(description="Of identifiers, retired items, number fields and filters.")


class PackageVersions(Versions):
    """The same, and the package."""

    genrec: str


class RolledBack(Versions):
    """The model before answers."""

    kept: bool = Field(description="Whether a server that starts again would go back too.")


class CatalogCard(Versions):
    """What can be asked for."""

    n_items: int
    n_retired: int
    fields: dict[str, str] = Field(description="Field of the items, and its type.")
    filters: list[str] = Field(description="Names of filters.")
    searches: list[str] = Field(description="Kinds of text searches that the model knows.")
    history_store: bool = Field(description="Whether the server has a log, so that `user` alone can be asked for.")


class ModelCard(BaseModel):
    """The served model, in OpenAI's form."""

    id: str
    object: Literal["model"]
    created: int = Field(description="Unix time of the load.")
    owned_by: str
    version: int
    digest: str | None


class Models(BaseModel):
    """A list of one model."""

    object: Literal["list"]
    data: list[ModelCard]


class Step(BaseModel):
    """One code on the way to an item."""

    level: int
    token: str
    code: int
    logp: float
    probability: float
    score: float = Field(description="Sum of logp so far.")
    n_children: int
    mass: dict[str, float] = Field(description="Where the model's probability of the next code went.")


class ListedItem(BaseModel):
    """An item of a list."""

    id: str
    score: float | None = Field(description="Log-probability of its identifier; null for popular items.")
    path: list[Step] | None = Field(None, description="With `explain`; only there.")


class OneList(BaseModel):
    """The list of one user, best first."""

    index: int = Field(description="Place in `inputs`.")
    items: list[ListedItem]
    source: str = Field(description="model, or popular for a user of whom nothing is known.")
    skipped_items: int = Field(description="Unknown ids of the history.")
    certified: bool | None = Field(description="Whether the list is proven to be the best one.")
    normalize: str | None = Field(description="The softmax of the scores.")
    catalog_version: int
    catalog: str
    catalog_digest: str
    model_version: int
    model_digest: str | None


class Lists(BaseModel):
    """Lists in the order of the users."""

    id: str = Field(description="Name of the request, also in x-request-id and in the log.")
    object: Literal["list"]
    created: int
    model: str
    data: list[OneList]


class Changed(BaseModel):
    """A change of the catalog counts from now on."""

    catalog_version: int
    unknown_items: int = Field(description="Ids that the catalog does not know.")


class Wrong(BaseModel):
    """What is wrong; nothing of the request is repeated."""

    message: str
    type: str
    param: str | None = Field(description="The field at fault.")
    code: str | None = Field(description="A word for programs.")


class Failure(BaseModel):
    """An error in OpenAI's form."""

    error: Wrong
