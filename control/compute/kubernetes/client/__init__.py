"""The client of Kubernetes' API server: where it is and who we are there
(:mod:`.credentials`), its calls (:mod:`.api`), its WebSockets (:mod:`.streams` over
:mod:`.connecting`), and what its refusals mean (:mod:`.refusals`)."""
