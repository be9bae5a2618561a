"""Pictures, and their upload for editors."""

from django.conf import settings
from django.core.files.storage import default_storage
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, JsonResponse
from django.urls import path


def pictures(request: HttpRequest) -> HttpResponse:
    """The names of all pictures; editors add one."""
    if request.method == "POST":
        if not settings.MAY_UPLOAD:
            return HttpResponse("editors alone upload\n", status=403)
        picture = request.FILES["picture"]
        return JsonResponse({"saved": default_storage.save(picture.name, picture)}, status=201)
    names = default_storage.listdir("")[1] if default_storage.exists("") else []
    return JsonResponse({"pictures": sorted(names)})


def picture(request: HttpRequest, name: str) -> FileResponse:
    """One picture."""
    if not default_storage.exists(name):
        raise Http404
    return FileResponse(default_storage.open(name))


def check(request: HttpRequest) -> HttpResponse:
    """Ready if the host of the request is one of ours."""
    return HttpResponse(f"ok on {request.get_host()}\n")


urlpatterns = [path("", pictures), path("check", check), path("pictures/<str:name>", picture)]
